"""MCC step by step: adaptive finds what dense finds, alone or in a crowd, encoded now or before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from models.bundle_schema import QuerySpace
from models.layers.stepwise import InProgress, JobTooLarge, StepCompletion
from models.loading import LoadedStepwiseModel
from models.systems.mcc import steps as module
from models.systems.mcc.lattice import Lattice
from models.systems.mcc.model import MCC, MCCConfig
from models.systems.mcc.queries import cube_grid, reconstruct
from models.systems.mcc.steps import ReconstructionState, ReconstructionSteps
from tests.fake_cuda.device import StreamTracker
from tests.support.bundles.analytic_mcc import HALF, RADIUS, SEEN, SIDE, shell

CPU = torch.device("cpu")
COARSE = {"spacing": 0.3, "space": QuerySpace(reach=0.6).model_dump()}
"""20³ cells and a stride of 4."""
ROUNDING = 2e-6
"""Difference of a probability between batches of different shapes."""


def job(seed: int = 0, limit: int = 10**7, spacing: float = 0.2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    seen = torch.randn(SEEN, SEEN, 3, generator=generator)
    seen[:8] = torch.nan
    pixels = torch.randint(0, 256, (SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
    return {"pixels": pixels, "seen": seen, "asks": torch.tensor([limit, Lattice(QuerySpace(), spacing).count]), "scale": torch.tensor(0.5)}


def run(steps: ReconstructionSteps, jobs: Sequence[Mapping[str, Tensor]], options: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
    """Run all jobs to their end, together."""
    with torch.inference_mode():
        states = dict(enumerate(steps.start(jobs, options)))
        answers: dict[int, dict[str, Tensor]] = {}
        while states:
            for index, outcome in zip(list(states), steps.step(list(states.values()), [True] * len(states)), strict=True):
                if isinstance(outcome, StepCompletion):
                    answers[index] = dict(outcome.outputs)
                    del states[index]
                else:
                    states[index] = outcome.state
    return [answers[index] for index in range(len(jobs))]


def find_occupied(answer: Mapping[str, Tensor], threshold: float = 0.1) -> dict[int, float]:
    return {cell: value for cell, value in zip(answer["cells"].tolist(), answer["occupancy"].tolist(), strict=True) if value > threshold}


def agree(one: Mapping[str, Tensor], other: Mapping[str, Tensor], threshold: float = 0.1, rounding: float = ROUNDING) -> None:
    """Require the same occupied cells with the same colours, except for cells whose probability is the threshold within rounding."""
    first, second = find_occupied(one, threshold), find_occupied(other, threshold)
    for cell in first.keys() ^ second.keys():
        assert abs({**first, **second}[cell] - threshold) < rounding
    colours = [dict(zip(answer["cells"].tolist(), answer["colours"].tolist(), strict=True)) for answer in (one, other)]
    for cell in first.keys() & second.keys():
        assert abs(first[cell] - second[cell]) < rounding
        assert max(abs(a - b) for a, b in zip(colours[0][cell], colours[1][cell], strict=True)) <= 1


@pytest.fixture(scope="module")
def shells() -> ReconstructionSteps:
    return ReconstructionSteps(shell(), CPU)


@pytest.fixture(scope="module")
def random() -> MCC:
    """Random weights: occupied are smooth regions that depend on image and points."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = MCC(MCCConfig(32, 8, width=24, depth=2, heads=2, window_heads=2, decoder_width=24, decoder_depth=2, decoder_heads=2)).eval()
        for parameter in model.parameters():
            parameter.data += 0.15 * torch.randn_like(parameter)
        model.decoder_xyz_pos_embed.pos_embed.weight.data *= 4
    return model


@pytest.mark.parametrize(("reach", "fewer"), [(0.1, 4), (0.2, 6)])
def test_adaptive_finds_a_shell_for_a_few_of_the_queries(shells: ReconstructionSteps, reach: float, fewer: int) -> None:
    space = QuerySpace(reach=reach).model_dump()
    adaptive, dense = run(
        shells, [job(spacing=0.1)] * 2, [{"spacing": 0.1, "space": space, "mode": mode} for mode in ("adaptive", "dense")]
    )
    agree(adaptive, dense)
    requested, grid = adaptive["queries"].tolist()
    assert grid == dense["queries"][0] == 60**3
    assert requested < grid / fewer
    points = torch.from_numpy(Lattice(QuerySpace(), 0.1).points(torch.tensor(list(find_occupied(dense))).numpy()))
    distance = (points.norm(dim=1) - RADIUS).abs()
    assert len(points) > 500 and distance.max() < 1.3 * HALF


def test_colours_are_of_places(shells: ReconstructionSteps) -> None:
    [answer] = run(shells, [job()], [{"spacing": 0.1}])
    found = answer["occupancy"] > 0.1
    points = torch.from_numpy(Lattice(QuerySpace(), 0.1).points(answer["cells"][found].numpy()))
    torch.testing.assert_close(answer["colours"][found].float(), 255 * (points / 6 + 0.5), atol=4, rtol=0)
    assert not answer["colours"][~found].any()


def test_dense_is_the_published_way_of_asking(random: MCC) -> None:
    arrays = job()
    [answer] = run(ReconstructionSteps(random, CPU), [arrays], [{"spacing": 0.3, "mode": "dense", "threshold": 0.7}])
    scene = random.cache_scene(random.encode(arrays["pixels"].permute(2, 0, 1)[None].float() / 255, arrays["seen"][None]))
    with torch.inference_mode():
        cloud = reconstruct(random, scene, cube_grid(3.0, 0.3), threshold=0.7)
    found = answer["occupancy"] > 0.7
    lattice = Lattice(QuerySpace(), 0.3)
    assert 0 < len(cloud.points) < lattice.count
    assert torch.equal(torch.from_numpy(lattice.points(answer["cells"][found].numpy())), cloud.points)
    torch.testing.assert_close(answer["occupancy"][found], cloud.occupancy, atol=ROUNDING, rtol=0)
    torch.testing.assert_close(answer["colours"][found].float(), 255 * cloud.colours.clamp(0, 1), atol=0.52, rtol=0)


def test_in_a_crowd_the_answer_is_the_same(random: MCC) -> None:
    """Scenes of other images, spacings, modes and thresholds share the steps, and end at other times."""
    jobs = [job(seed) for seed in range(5)]
    options = [
        {**COARSE, "threshold": 0.7},
        {"spacing": 0.5, "mode": "dense", "threshold": 0.7},
        {**COARSE, "spacing": 0.25, "threshold": 0.75},
        {"spacing": 0.2, "space": QuerySpace(region="half-ball", extent=2.0, reach=0.2).model_dump(), "threshold": 0.45},
        {**COARSE, "threshold": 0.7},
    ]
    steps = ReconstructionSteps(random, CPU)
    joint = run(steps, jobs, options)
    for index in range(len(jobs)):
        [alone] = run(steps, [jobs[index]], [options[index]])
        assert find_occupied(alone, options[index]["threshold"])
        agree(alone, joint[index], options[index]["threshold"])


def test_a_scene_is_queried_again_without_its_image(random: MCC) -> None:
    steps, requested = ReconstructionSteps(random, CPU), {**COARSE, "threshold": 0.7}
    [first] = run(steps, [job(3)], [{**requested, "scene": "one"}])
    scene_arrays = {"latent": first["latent"], "seen": first["seen"], "asks": job()["asks"], "scale": first["scale"]}
    cached, uncached = (
        run(steps, [scene_arrays], [{**requested, "scene": "one"}])[0],
        run(ReconstructionSteps(random, CPU), [scene_arrays], [requested])[0],
    )
    for again in (cached, uncached):
        agree(first, again, 0.7)
        assert "latent" not in again and again["scale"] == first["scale"]


def test_a_step_is_bounded_and_changes_no_state(shells: ReconstructionSteps) -> None:
    with torch.inference_mode():
        [state] = shells.start([job()], [{"spacing": 0.05, "mode": "dense"}])
        assert isinstance(state, ReconstructionState)
        before = (state.done, state.total, state.queries, state.nbytes)
        first, again = (shells.step([state], [False])[0] for _ in range(2))
    assert isinstance(first, InProgress) and isinstance(again, InProgress)
    assert (state.done, state.total, state.queries, state.nbytes) == before
    assert first.state.done == 1 and first.state.total == state.total == -(-(120**3) // state.queries)
    assert shells.cost(state) == state.queries < 120**3
    assert first.preview is None and first.state.nbytes > state.nbytes


def test_previews_show_what_was_found_so_far(shells: ReconstructionSteps) -> None:
    with torch.inference_mode():
        [state] = shells.start([job()], [{"spacing": 0.1, "space": QuerySpace(reach=0.2).model_dump()}])
        visible = []
        outcome = shells.step([state], [True])[0]
        while isinstance(outcome, InProgress):
            visible.append(outcome.preview)
            outcome = shells.step([outcome.state], [True])[0]
    counts = [len(preview["cells"]) for preview in visible if preview is not None]
    assert len(counts) == len(visible) > 2 and counts[-1] > 4 * counts[0] > 0
    assert [int(preview["level"]) for preview in visible if preview] == sorted(int(preview["level"]) for preview in visible if preview)


def test_too_many_queries(shells: ReconstructionSteps) -> None:
    with pytest.raises(JobTooLarge, match="OPSIN_MAX_QUERIES"):
        run(shells, [job(limit=60_000)], [{"spacing": 0.05}])


@pytest.mark.parametrize(
    ("first", "second", "max_share"),
    [
        ({}, {}, 0.0),
        ({}, {"threshold": 0.3}, 0.0),
        ({"threshold": 0.3}, {}, 0.5),
        ({"spacing": 0.15}, {"spacing": 0.3}, 0.0),
        ({"spacing": 0.3}, {"spacing": 0.15}, 0.95),
        ({"spacing": 0.3}, {"spacing": 0.2}, 1.0),
        ({"mode": "dense"}, {}, 0.0),
        ({}, {"mode": "dense"}, 0.8),
    ],
    ids=str,
)
def test_known_cells_of_a_scene_are_not_computed_again(
    random: MCC, first: dict[str, Any], second: dict[str, Any], max_share: float
) -> None:
    """The answer is that of a new scene; `requested` is the largest allowed share of its queries."""
    usual = {"spacing": 0.2, "threshold": 0.1, "space": QuerySpace(reach=0.2).model_dump()}
    steps = ReconstructionSteps(random, CPU)
    [before] = run(steps, [job()], [usual | first | {"scene": "one"}])
    again = {name: before[name] for name in ("latent", "seen", "scale")} | {"asks": job()["asks"]}
    [found] = run(steps, [again], [usual | second | {"scene": "one"}])
    [fresh] = run(ReconstructionSteps(random, CPU), [job()], [usual | second])
    agree(found, fresh, (usual | second)["threshold"])
    assert found["queries"][0] <= max_share * fresh["queries"][0]
    [once_more] = run(steps, [again], [usual | second | {"scene": "one"}])
    agree(once_more, fresh, (usual | second)["threshold"])


def test_cached_cells_are_kept_for_the_stream_that_reads_them(random: MCC, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job that cached them is finished: an eviction while another stream reads frees them for the stream that made them."""
    tracker = StreamTracker()
    monkeypatch.setattr("models.systems.mcc.steps.keep_for_current_stream", tracker.keep)
    steps, options = ReconstructionSteps(random, CPU), {"spacing": 0.3, "scene": "one"}
    with torch.inference_mode(), tracker:
        [before] = run(steps, [job()], [options])
    again = {name: before[name].clone() for name in ("latent", "seen")} | {"asks": job()["asks"]}
    with torch.inference_mode(), tracker:
        tracker.stream = 1
        [state] = steps.start([again], [options])
    assert state.done == 0 and not tracker.unkept


def test_scenes_queried_together_keep_their_own_answers(random: MCC) -> None:
    steps, usual = ReconstructionSteps(random, CPU), {"spacing": 0.3}
    named = [usual | {"scene": name} for name in ("one", "two")]
    both = run(steps, [job(0), job(1)], named)
    again = [{name: answer[name] for name in ("latent", "seen")} | {"asks": job()["asks"]} for answer in both]
    for before, after in zip(both, run(steps, again, named), strict=True):
        assert after["queries"][0] == 0
        agree(before, after)


@pytest.mark.parametrize(("room", "seconds"), [(0, 600.0), (2**30, 0.0)])
def test_kept_scenes_go_for_new_jobs_or_after_their_time(random: MCC, room: int, seconds: float) -> None:
    model = ReconstructionSteps(random, CPU)
    steps = LoadedStepwiseModel(model, CPU)
    (first,) = run(model, [job()], [COARSE | {"scene": "one"}])
    again = {name: first[name] for name in ("latent", "seen")} | {"asks": job()["asks"]}
    assert steps.evict(2**30, 600.0) > 0
    assert run(model, [again], [COARSE | {"scene": "one"}])[0]["queries"][0] == 0
    assert steps.evict(room, seconds) == 0
    assert run(model, [again], [COARSE | {"scene": "one"}])[0]["queries"][0] > 0


def test_scenes_that_are_kept_have_a_bound_in_bytes(random: MCC, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHE_BYTES", 200_000)
    model = ReconstructionSteps(random, CPU)
    steps = LoadedStepwiseModel(model, CPU)
    evicted = []
    for number in range(12):
        run(model, [job(number)], [COARSE | {"scene": str(number)}])
        evicted.append(steps.evict(2**30, 600.0))
    assert evicted[0] < evicted[1]
    assert max(evicted) <= 2 * 200_000
    assert evicted[-1] < 6 * evicted[0]


def test_shared_results_are_computed_before_they_are_kept(random: MCC, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU they read it on streams of their own."""
    order: list[str] = []
    keep = module.BoundedCache.put

    def record_put(recent: Any, name: str, kind: Any) -> None:
        order.append(type(kind).__name__)
        keep(recent, name, kind)

    monkeypatch.setattr(module, "synchronize", lambda device: order.append("computed"))
    monkeypatch.setattr(module.BoundedCache, "put", record_put)
    run(ReconstructionSteps(random, CPU), [job()], [COARSE | {"scene": "one"}])
    assert order == ["computed", "SceneCache", "computed", "CachedPredictions"]
    order.clear()
    run(ReconstructionSteps(random, CPU), [job()], [COARSE])
    assert "computed" not in order  # no other job finds it
