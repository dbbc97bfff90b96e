"""Holes filled with patches from around them: by themselves, or from the network's result on; a level a step, in a confined process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from models.layers.stepwise import InProgress, StepCompletion
from models.loading import LoadedStepwiseModel, load
from models.media import patchmatch
from models.media.patchmatch import has_sources, reduced_mask, reductions
from models.systems.diffmae.exemplar_fill import ExemplarState
from models.systems.diffmae.inpaint_state import InpaintState
from server.queue.messages import Array
from server.queue.worker.delivery import Delivery
from server.worker.executors import ComputedBatch, FailedJob
from server.worker.stepwise import Stepwise
from tests.support.bundles.vit import write_tiny_diffmae
from tests.support.queue import delivery

SIDE = 64
HOLE = np.zeros((SIDE, SIDE), np.uint8)
HOLE[24:40, 20:44] = 1


def draw_stripes() -> np.ndarray:
    """Stripes of eight pixels, slightly uneven."""
    across = np.arange(SIDE) // 4 % 2 * 150 + 50
    colours = np.broadcast_to(across[None, :, None], (SIDE, SIDE, 3)) + np.random.default_rng(0).integers(0, 8, (SIDE, SIDE, 3))
    return colours.astype(np.uint8)


def copy(*, network: bool = False) -> dict[str, np.ndarray]:
    hidden = np.where(HOLE[..., np.newaxis] > 0, 0, draw_stripes()).astype(np.uint8)
    job = {"detail": hidden, "detail_missing": HOLE, "box": np.array([0, 0, SIDE, SIDE], np.int32)}
    if network:
        job |= {"pixels": hidden[::4, ::4].copy(), "missing": HOLE[::4, ::4].copy(), "windows": np.zeros((1, 2), np.int32)}
    return job


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> LoadedStepwiseModel:
    loaded = load(write_tiny_diffmae(tmp_path_factory.mktemp("bundles"))).steps
    assert loaded is not None
    return loaded


def answer(model: LoadedStepwiseModel, job: dict[str, np.ndarray], **options: Any) -> tuple[dict[str, np.ndarray], list[tuple[int, int]]]:
    """Return the outputs, and done and total before each step."""
    [state] = model.start([job], [options])
    reply = []
    while True:
        reply.append((state.done, state.total))
        [outcome] = model.step([state], [False])
        if hasattr(outcome, "outputs"):
            return dict(outcome.outputs), reply
        state = outcome.state


def test_a_pattern_goes_on_in_the_hole(steps: LoadedStepwiseModel) -> None:
    outputs, reply = answer(steps, copy(), seed=1)
    [filled] = outputs["filled"]
    assert np.abs(filled.astype(int) - draw_stripes())[HOLE > 0].mean() < 12, "stripes differ by 150"
    assert np.array_equal(filled[HOLE == 0], draw_stripes()[HOLE == 0])
    assert outputs["box"].tolist() == [0, 0, SIDE, SIDE] and "detail" not in outputs
    assert reply == [(done, len(reply)) for done in range(len(reply))]


def test_seeds_repeat_and_each_sample_has_its_own(steps: LoadedStepwiseModel) -> None:
    noisy = copy()
    noisy["detail"] = np.where(HOLE[..., np.newaxis] > 0, 0, np.random.default_rng(3).integers(0, 256, (SIDE, SIDE, 3))).astype(np.uint8)
    both = answer(steps, noisy, seed=7, samples=2)[0]["filled"]
    alone = answer(steps, noisy, seed=8)[0]["filled"]
    assert np.array_equal(both[1], alone[0]) and not np.array_equal(both[0], both[1])


def test_from_network_it_takes_network_steps_and_finer_levels(steps: LoadedStepwiseModel) -> None:
    outputs, reply = answer(steps, copy(network=True), seed=1, steps=3)
    again, _ = answer(steps, copy(network=True), seed=1, steps=3)
    levels = len(reductions(HOLE > 0, 16 // 3))
    assert [done for done, _ in reply] == list(range(3 + levels))
    assert outputs["filled"].shape == (1, SIDE, SIDE, 3) and np.array_equal(outputs["filled"], again["filled"])
    assert np.array_equal(outputs["filled"][0][HOLE == 0], draw_stripes()[HOLE == 0])


def test_jobs_of_both_kinds_share_a_step_with_same_answers(steps: LoadedStepwiseModel) -> None:
    jobs, options = [copy(), copy(network=True), copy()], [{"seed": 1}, {"seed": 1, "steps": 2}, {"seed": 2}]
    states = dict(enumerate(steps.start(jobs, options)))
    filled = {}
    while states:
        for (index, _), outcome in zip(tuple(states.items()), steps.step(list(states.values()), [False] * len(states)), strict=True):
            if hasattr(outcome, "outputs"):
                filled[index] = outcome.outputs["filled"]
                del states[index]
            else:
                states[index] = outcome.state
    for index, (job, requested) in enumerate(zip(jobs, options, strict=True)):
        assert np.array_equal(filled[index], answer(steps, job, **requested)[0]["filled"])


def test_states_are_values(steps: LoadedStepwiseModel) -> None:
    """A step that was taken may be taken again."""
    [state] = steps.start([copy(network=True)], [{"seed": 1, "steps": 1}])
    assert isinstance(state, InpaintState)
    [outcome] = steps.steps.step([state], [False])
    assert isinstance(outcome, InProgress) and isinstance(outcome.state, ExemplarState)
    twice = [steps.steps.step([outcome.state], [False])[0] for _ in range(2)]
    assert all(isinstance(one, InProgress | StepCompletion) for one in twice)
    first, second = (one.state.latest if isinstance(one, InProgress) else one.outputs["filled"] for one in twice)
    assert np.array_equal(getattr(first, "pixels", first), getattr(second, "pixels", second))


def job_of(arrays: dict[str, np.ndarray], **options: Any) -> Delivery:
    made = delivery(bundle="painter@1")
    sent = {name: Array.from_numpy(array) for name, array in arrays.items()}
    return replace(made, job=msgspec.structs.replace(made.job, arrays=sent, options={"seed": 1, **options}))


def test_a_process_that_dies_costs_its_own_job_alone(steps: LoadedStepwiseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patchmatch, "PROGRAM", "tests.support.child_programs aborts")
    executor = Stepwise(steps, torch.device("cpu"))
    doomed, fine = job_of(copy()), job_of({name: copy(network=True)[name] for name in ("pixels", "missing", "windows")}, steps=1)
    outcomes = list(executor.run([doomed, fine]))
    [refused] = [outcome for outcome in outcomes if isinstance(outcome, FailedJob)]
    assert refused.job is doomed and "it was ended by signal 6" in str(refused.error)
    answers = [answer.job for outcome in outcomes if isinstance(outcome, ComputedBatch) for answer in outcome.answers]
    assert answers == [fine] and not executor.residents


@pytest.mark.parametrize(
    ("hole", "is_known"), [((0, 0, 12, 12), False), ((0, 0, 12, 7), True), ((0, 0, 12, 8), False), ((4, 4, 8, 8), False)]
)
def test_patches_are_copied_only_where_one_is_known_as_a_whole(hole: tuple[int, int, int, int], is_known: bool) -> None:
    missing = np.zeros((12, 12), bool)
    top, left, bottom, right = hole
    missing[top:bottom, left:right] = True
    assert has_sources(missing) == is_known
    assert not has_sources(np.zeros((4, 30), bool))


def test_pyramid_starts_at_a_known_patch_within_requested_depth() -> None:
    assert (reductions(HOLE > 0), reductions(HOLE > 0, 8), reductions(HOLE > 0, 64)) == ((2, 1), (4, 2, 1), (1,))


def test_pyramid_ends_if_hole_is_beyond_last_whole_cells() -> None:
    for side, hole in ((97, 1), (131, 3), (99, 3)):
        missing = np.zeros((side, side), bool)
        missing[:, -hole:] = True
        levels = reductions(missing, 8)
        assert all(reduced_mask(missing, reduction).any() for reduction in levels) and levels[-1] == 1
        assert reductions(missing.T, 8) == levels
