"""DiffMAE step by step: a job's answer depends on its own image, hole, options and seed, not on the jobs that share its batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from models.bundle import BundleError
from models.layers.patches import to_pixels
from models.layers.stepwise import InProgress, JobState, StepCompletion
from models.systems.diffmae.decoder import DecoderType
from models.systems.diffmae.diffusion import DiffusionSampler, NoiseSchedule, SamplerMethod
from models.systems.diffmae.inpaint_state import SAMPLE_COST, InpaintState, group_by_hole_size
from models.systems.diffmae.masks import PatchSplit, patches_of_pixels
from models.systems.diffmae.model import DiffMAE
from models.systems.diffmae.sampling import counter_noise, inpaint
from models.systems.diffmae.steps import InpaintingSteps
from tests.models.systems.diffmae.test_diffmae import CLIP, SMALL, build

HEIGHT, WIDTH = SMALL.image_size
LEVELS = 2
"""Grey levels by which a pixel may differ in another company."""

Job = dict[str, Tensor]


def job(seed: int, hole: tuple[int, int, int, int], size: tuple[int, int] = (HEIGHT, WIDTH), **extra: Tensor) -> Job:
    """Draw a random image with a hole (top, left, height, width) in one window."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8)
    top, left, height, width = hole
    missing = torch.zeros(size, dtype=torch.uint8)
    missing[top : top + height, left : left + width] = 1
    return {"pixels": pixels, "missing": missing, "windows": torch.zeros(1, 2, dtype=torch.int32), **extra}


def stepper(model: DiffMAE | None = None, *, packs: bool = True) -> InpaintingSteps:
    return InpaintingSteps(model or build(), torch.device("cpu"), packs=packs)


@torch.inference_mode()
def answer(steps: InpaintingSteps, inputs: Job, /, **options: Any) -> Mapping[str, Tensor]:
    """Return the answer of a job that runs by itself."""
    [state] = steps.start([inputs], [options])
    for _ in range(state.total):
        [outcome] = steps.step([state], [False])
        if isinstance(outcome, StepCompletion):
            return outcome.outputs
        state = outcome.state
    raise AssertionError(f"it has not ended after {state.total} steps")


@torch.inference_mode()
def run_together(steps: InpaintingSteps, jobs: list[tuple[int, Job, dict[str, Any]]]) -> list[Tensor]:
    """Jobs that each join at a step of their own."""
    states: dict[int, JobState] = {}
    answers: dict[int, Tensor] = {}
    for now in range(1000):
        for index, (at, inputs, options) in enumerate(jobs):
            if at == now:
                states[index] = steps.start([inputs], [options])[0]
        order = sorted(states, key=lambda index: (index * 7 + now) % 5)
        for index, outcome in zip(order, steps.step([states[index] for index in order], [False] * len(order)), strict=True):
            if isinstance(outcome, StepCompletion):
                answers[index] = outcome.outputs["filled"]
                del states[index]
            else:
                states[index] = outcome.state
        if len(answers) == len(jobs):
            return [answers[index] for index in range(len(jobs))]
    raise AssertionError("jobs are left")


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one.int() - other.int()).abs().max() <= LEVELS)


HOLE = (8, 0, 8, 8)
"""A hole of whole patches."""
MIXED = [
    (0, job(1, (0, 0, 1, 1)), {"sampler": "one-step", "steps": 1, "seed": 4}),
    (0, job(2, (3, 2, 11, 9)), {"sampler": "ddim", "steps": 7, "seed": 2**63 - 1, "samples": 3}),
    (1, job(3, (0, 0, HEIGHT, WIDTH)), {"sampler": "ancestral", "steps": 4, "seed": 5}),
    (3, job(4, HOLE), {"sampler": "ddim", "steps": 5, "eta": 0.7, "spacing": "logsnr", "inject_known": False}),
    (3, job(5, (1, 1, 3, 5), size=(5, WIDTH)), {"sampler": "ddim", "steps": 2}),
]


@pytest.mark.parametrize(
    ("options", "sampler"),
    [
        ({"sampler": "ddim", "steps": 5}, DiffusionSampler(SamplerMethod.DDIM, 5)),
        ({"sampler": "ddim", "steps": 5, "eta": 0.5}, DiffusionSampler(SamplerMethod.DDIM, 5, eta=0.5)),
        ({"sampler": "ancestral", "steps": 6}, DiffusionSampler(SamplerMethod.ANCESTRAL, 6)),
        ({"sampler": "one-step", "steps": 1}, DiffusionSampler(SamplerMethod.ONE_STEP, 1)),
        ({"sampler": "ancestral", "steps": 6, "temperature": 0.3}, DiffusionSampler(SamplerMethod.ANCESTRAL, 6)),
    ],
    ids=str,
)
@pytest.mark.parametrize("decoder", list(DecoderType))
def test_step_by_step_it_is_the_whole_chain(options: dict[str, Any], sampler: DiffusionSampler, decoder: DecoderType) -> None:
    """`inpaint`, which the recorded runs check, with the same noise."""
    model, inputs = build(decoder_type=decoder), job(1, HOLE)
    mean, std = torch.tensor(SMALL.mean), torch.tensor(SMALL.std)
    images = ((inputs["pixels"].float() / 255 - mean) / std).permute(2, 0, 1).unsqueeze(0)
    split = PatchSplit.from_mask(patches_of_pixels(inputs["missing"].bool().unsqueeze(0), SMALL.patch_size))
    full = inpaint(
        model, images, split, sampler, counter_noise(torch.tensor([9]), split, SMALL.patch_values, options.get("temperature", 1.0))
    ).pictures
    filled = answer(stepper(model), inputs, seed=9, **options)["filled"]
    assert torch.equal(filled, to_pixels(full, SMALL.mean, SMALL.std))


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("decoder", list(DecoderType))
def test_other_jobs_in_the_batches_do_not_change_the_answer(decoder: DecoderType, packs: bool) -> None:
    steps = stepper(build(decoder_type=decoder), packs=packs)
    for (_, inputs, options), filled in zip(MIXED, run_together(steps, MIXED), strict=True):
        assert close(filled, answer(steps, inputs, **options)["filled"])


def test_a_packed_step_is_the_padded_one() -> None:
    model = build()
    for packed, padded in zip(run_together(stepper(model), MIXED), run_together(stepper(model, packs=False), MIXED), strict=True):
        assert close(packed, padded)


@pytest.mark.parametrize("packs", [True, False])
def test_a_deterministic_job_has_the_same_bytes_in_any_company(packs: bool) -> None:
    steps = stepper(packs=packs)
    exact = {"steps": 7, "seed": 3, "deterministic": True}
    alone = answer(steps, job(9, HOLE), **exact)["filled"]
    assert torch.equal(run_together(steps, [*MIXED, (2, job(9, HOLE), exact)])[-1], alone)


def test_pixels_that_are_not_missing_stay() -> None:
    for _, inputs, options in MIXED:
        filled = answer(stepper(), inputs, **options)["filled"]
        assert filled.shape == (options.get("samples", 1), *inputs["pixels"].shape) and filled.dtype == torch.uint8
        retained = inputs["missing"] == 0
        assert torch.equal(filled[:, retained], inputs["pixels"][retained].expand(len(filled), -1, -1))


def test_what_lies_under_the_mask_has_no_influence() -> None:
    for size in ((HEIGHT, WIDTH), (HEIGHT - 3, WIDTH - 5)):  # the second canvas repeats its edge
        arrays = job(1, (5, 6, HEIGHT, WIDTH), size=size)
        other = arrays | {"pixels": torch.where(arrays["missing"].bool().unsqueeze(-1), 255 - arrays["pixels"], arrays["pixels"])}
        assert not torch.equal(arrays["pixels"], other["pixels"])
        first, second = (answer(stepper(), one, steps=3)["filled"] for one in (arrays, other))
        assert torch.equal(first, second)


def test_samples_share_one_encoding_and_differ() -> None:
    model = build()
    encoded: list[int] = []
    model.blocks[0].register_forward_pre_hook(lambda module, args: encoded.append(args[0].x.shape[0]))
    arrays = job(1, HOLE)
    samples = answer(stepper(model), arrays, steps=4, seed=7, samples=3)["filled"]
    assert encoded == [1], "the encoder runs once, for all steps and samples"
    assert not torch.equal(samples[0], samples[1])
    for index, sample in enumerate(samples):
        assert close(sample, answer(stepper(model), arrays, steps=4, seed=7 + index)["filled"][0])


def test_new_jobs_of_equal_holes_are_encoded_together() -> None:
    model = build()
    encoded: list[int] = []
    model.blocks[0].register_forward_pre_hook(lambda module, args: encoded.append(args[0].x.shape[0]))
    jobs = [job(1, HOLE), job(2, (0, 0, 1, 1)), job(3, HOLE), job(4, HOLE)]
    steps, options = stepper(model), [{"steps": 3, "seed": 5}] * 3 + [{"steps": 3, "deterministic": True}]
    with torch.inference_mode():
        states = steps.start(jobs, options)
        assert sorted(encoded) == [1, 1, 2]
        for _ in range(2):
            states = [one.state for one in steps.step(states, [False] * 4) if isinstance(one, InProgress)]
        outcomes = steps.step(states, [False] * 4)
    for inputs, chosen, outcome in zip(jobs, options, outcomes, strict=True):
        assert isinstance(outcome, StepCompletion) and close(outcome.outputs["filled"], answer(steps, inputs, **chosen)["filled"])


def test_the_last_seed_is_followed_by_the_first() -> None:
    arrays = job(1, HOLE)
    samples = answer(stepper(), arrays, steps=3, seed=2**63 - 1, samples=2)["filled"]
    assert close(samples[1], answer(stepper(), arrays, steps=3, seed=0)["filled"][0])


def test_known_pixels_of_masked_patch_matter_only_if_wanted() -> None:
    arrays = job(1, (0, 0, 3, 3))
    changed = arrays["pixels"].clone()
    changed[3, :4] = 255 - changed[3, :4]  # in the same patch
    other = arrays | {"pixels": changed}
    hole = (slice(None), slice(3), slice(3))
    for inject, same in ((True, False), (False, True)):
        first, second = (answer(stepper(), one, steps=4, inject_known=inject)["filled"][hole] for one in (arrays, other))
        assert torch.equal(first, second) == same


def test_where_nothing_is_missing_one_step_gives_the_image_back() -> None:
    arrays = job(1, (0, 0, 0, 0)) | {"windows": torch.zeros(0, 2, dtype=torch.int32)}
    model = build()
    model.forward = model.predict = None  # type: ignore[assignment, method-assign]  # nothing is computed
    [state] = stepper(model).start([arrays], [{"steps": 50, "samples": 2}])
    assert (state.done, state.total) == (0, 1)
    assert torch.equal(answer(stepper(model), arrays, steps=50, samples=2)["filled"], arrays["pixels"].expand(2, -1, -1, -1))


def test_windows_are_filled_in_turn_and_use_earlier_ones() -> None:
    """The hole spans both windows; noise and the first window's pixels decide about the second one."""
    half = WIDTH // 2
    arrays = job(1, (4, half, 6, WIDTH), size=(HEIGHT, WIDTH + half)) | {"windows": torch.tensor([[0, 0], [0, half]])}
    steps = stepper()
    [state] = steps.start([arrays], [{"steps": 3, "samples": 2}])
    assert state.total == 6
    both = answer(steps, arrays, steps=3, samples=2)["filled"]
    retained = arrays["missing"] == 0
    assert torch.equal(both[:, retained], arrays["pixels"][retained].expand(2, -1, -1))
    first = answer(steps, arrays | {"windows": torch.tensor([[0, 0]])}, steps=3, samples=2)["filled"]
    assert torch.equal(both[:, :, :WIDTH], first[:, :, :WIDTH])
    second = job(1, (0, 0, 0, 0)) | {"pixels": first[0][:, half:], "missing": arrays["missing"][:, half:].clone()}
    second["missing"][:, : WIDTH - half] = 0  # what the first window has made is known to the second
    others_noise = answer(steps, second, steps=3)["filled"][0]
    assert not torch.equal(others_noise, both[0][:, half:]), "both windows draw the same noise"


def test_a_step_changes_no_state() -> None:
    steps = stepper()
    [state] = steps.start([job(1, HOLE)], [{"steps": 3, "sampler": "ancestral"}])
    with torch.inference_mode():
        [first] = steps.step([state], [True])
        [again] = steps.step([state], [True])
    assert isinstance(first, InProgress) and isinstance(again, InProgress)
    assert (state.done, first.state.done) == (0, 1)
    assert first.preview is not None and again.preview is not None
    assert torch.equal(first.preview["filled"], again.preview["filled"])


def test_previews_come_closer_to_the_answer() -> None:
    """The last one but for the last step's change."""
    steps, inputs = stepper(), job(1, HOLE)
    [state] = steps.start([inputs], [{"steps": 3, "samples": 2}])
    previews = []
    with torch.inference_mode():
        while isinstance(outcome := steps.step([state], [True])[0], InProgress):
            assert outcome.preview is not None
            previews.append(outcome.preview)
            state = outcome.state
    assert [int(preview["step"]) for preview in previews] == [1, 2]
    for preview in previews:
        assert preview["filled"].shape == inputs["pixels"].shape
        retained = inputs["missing"] == 0
        assert torch.equal(preview["filled"][retained], inputs["pixels"][retained])


def test_a_preview_says_where_its_window_lies_in_the_image() -> None:
    """The canvas is half as large as the box that it was made from."""
    arrays = job(1, HOLE)
    height, width = arrays["missing"].shape
    box = torch.tensor([10, 20, 2 * width, 2 * height])
    side = width // 2
    steps = stepper()
    [state] = steps.start([arrays | {"box": box, "windows": torch.tensor([[0, side]], dtype=torch.int32)}], [{"steps": 3}])
    with torch.inference_mode():
        [outcome] = steps.step([state], [True])
    assert isinstance(outcome, InProgress) and outcome.preview is not None
    visible = outcome.preview["filled"].shape[1]
    assert outcome.preview["box"].tolist() == [10 + 2 * side, 20, 2 * visible, 2 * outcome.preview["filled"].shape[0]]


def test_other_arrays_come_back_with_the_answer() -> None:
    file = torch.arange(9, dtype=torch.uint8)
    assert torch.equal(answer(stepper(), job(1, HOLE, image=file), steps=2)["image"], file)


def test_step_cost_counts_noisy_patches_and_memory_the_state() -> None:
    steps = stepper()
    small, large = steps.start([job(1, (0, 0, 1, 1)), job(1, (0, 0, HEIGHT, WIDTH))], [{"samples": 2}, {}])
    assert (steps.cost(small), steps.cost(large)) == (2 * (1 + SAMPLE_COST), SMALL.patches + SAMPLE_COST)
    assert small.nbytes > 2 * SMALL.patch_values * 4 + HEIGHT * WIDTH * 3
    assert large.nbytes > SMALL.patches * SMALL.patch_values * 4 + HEIGHT * WIDTH * 3


def start_states(*jobs: tuple[tuple[int, int], bool]) -> list[InpaintState]:
    """Sizes of the holes, and whether the bytes are to be the same."""
    states = stepper().start([job(1, (0, 0, *size)) for size, _ in jobs], [{"deterministic": exact} for _, exact in jobs])
    return [state for state in states if isinstance(state, InpaintState)]


def test_similar_holes_share_padded_pass_and_all_a_packed_one() -> None:
    fillings = start_states(((1, 1), False), ((HEIGHT, WIDTH), False), ((HEIGHT, WIDTH - 5), False), ((1, 1), True))
    assert sorted(sorted(group) for group in group_by_hole_size(fillings)) == [[0], [1, 2], [3]]
    assert sorted(sorted(group) for group in group_by_hole_size(fillings, 0.0)) == [[0, 1, 2], [3]]


@pytest.mark.parametrize("least_share", [0.0, 0.75])
def test_no_job_joins_the_pass_of_a_deterministic_job(least_share: float) -> None:
    fillings = start_states(((9, 9), False), ((9, 9), True), ((9, 9), False), ((9, 9), True), ((9, 9), False))
    assert sorted(sorted(group) for group in group_by_hole_size(fillings, least_share)) == [[0, 2, 4], [1], [3]]


def test_a_model_of_normalised_patches_cannot_fill_holes() -> None:
    with pytest.raises(BundleError, match="normalise_patches: such a model cannot fill holes"):
        stepper(build(normalise_patches=True)).start([job(1, HOLE)], [{}])


def test_clips_are_filled_too() -> None:
    model = build(image_size=CLIP.image_size, frames=CLIP.frames, patch_frames=CLIP.patch_frames)
    assert CLIP.frames is not None
    pixels = torch.randint(0, 256, (CLIP.frames, *CLIP.image_size, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    missing = torch.zeros(CLIP.frames, *CLIP.image_size, dtype=torch.uint8)
    missing[1:3, 2:9, 4:7] = 1
    inputs = {"pixels": pixels, "missing": missing, "windows": torch.zeros(1, 2, dtype=torch.int32)}
    filled = answer(stepper(model), inputs, steps=4, samples=2)["filled"]
    assert filled.shape == (2, *pixels.shape)
    assert torch.equal(filled[:, missing == 0], pixels[missing == 0].expand(2, -1, -1))
    assert not torch.equal(filled[0], pixels)


def test_more_steps_than_the_schedule_has_are_as_many_as_it_has() -> None:
    [state] = stepper(build(schedule=NoiseSchedule(steps=50))).start([job(1, HOLE)], [{"steps": 100}])
    assert state.total == 50
