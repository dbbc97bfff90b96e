"""Filling holes: masks of any kind, mixed batches, and everything that may not change a result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.patches import patch_statistics, to_pixels
from models.systems.diffmae.decoder import DecoderContext, DecoderType
from models.systems.diffmae.diffusion import DiffusionSampler, NoiseSchedule, SamplerMethod, SamplerTable, ScheduleKind, VarianceType
from models.systems.diffmae.masks import PatchSplit, centre_mask
from models.systems.diffmae.model import DiffMAE, PredictionTarget
from models.systems.diffmae.sampling import (
    PatchStatistics,
    clamp_to_colour_range,
    clean,
    counter_noise,
    find_known_pixels,
    inpaint,
    paste_patches,
)
from tests.golden.case import Case, read_case
from tests.golden.replays.diffmae import load, read_sampler
from tests.models.systems.diffmae import diffmae_reference as reference
from tests.models.systems.diffmae.test_diffmae import CLIP, SMALL, alone, build, build_ragged_batch, images_for, split_for

GOLDEN = Path(__file__).parents[3] / "golden" / "diffmae"
FAST = DiffusionSampler(SamplerMethod.ANCESTRAL, 5)


def fill(model: DiffMAE, images: Tensor, split: PatchSplit, sampler: DiffusionSampler = FAST, seeds: tuple[int, ...] = (7, 8)) -> Tensor:
    draw = counter_noise(torch.tensor(seeds), split, model.config.patch_values)
    return inpaint(model, images, split, sampler, draw).pictures


class Requests:
    """The recorded requests, run step by step as a scheduler would."""

    def __init__(self, case: Case, run: str) -> None:
        self.case, self.model = case, load(case)
        self.steps = read_sampler(case.recorded["runs"][run], self.model.config.schedule).reverse(self.model.config.schedule)
        self.run = run
        self.states: dict[str, Tensor] = {}
        self.left: dict[str, int] = {}
        self.contexts: dict[str, DecoderContext] = {}

    def admit(self, name: str) -> None:
        masked = self.case.inputs[f"{name}.ids_mask"]
        mask = torch.zeros(1, self.model.config.patches, dtype=torch.bool).scatter_(1, masked, value=True)
        self.contexts[name] = self.model.encode(self.case.inputs[f"{name}.image"], PatchSplit.from_mask(mask))
        self.states[name], self.left[name] = self.case.inputs[f"{name}.noise_T"], len(self.steps)

    def tick(self, *names: str) -> None:
        limit = max(self.states[name].shape[1] for name in names)

        def pad(values: list[Tensor]) -> Tensor:
            return torch.cat([F.pad(value, (0, 0, 0, limit - value.shape[1])) for value in values])

        noise = []
        for name in names:
            executed = len(self.steps) - self.left[name]
            recorded = self.case.inputs[f"{name}.step_noise"]
            noise.append(recorded[executed] if self.left[name] > 1 else torch.zeros_like(recorded[0]))
        step = SamplerTable.join([self.steps.rows(torch.tensor([self.left[name] - 1])) for name in names])
        x = pad([self.states[name] for name in names])
        context = DecoderContext.join([self.contexts[name] for name in names])
        x0 = clean(self.model, x, self.model.predict(x, step.time, context).patches, step, None)
        after = step.take(x, x0, pad(noise))
        for row, name in enumerate(names):
            self.states[name] = after[row : row + 1, : self.states[name].shape[1]]
            self.left[name] -= 1

    def expect_recorded(self, name: str) -> None:
        assert self.left[name] == 0
        torch.testing.assert_close(
            self.states[name],
            self.case.outputs[f"{name}.{self.run}.patches"],
            atol=self.case.tolerance.atol,
            rtol=self.case.tolerance.rtol,
        )


@torch.no_grad()
def test_a_request_that_joins_late_changes_nothing() -> None:
    """b joins after three steps of a, a pauses once, and b ends alone: both are as recorded on their own."""
    requests = Requests(read_case(GOLDEN / "sample_cross_self"), "ddpm10")
    requests.admit("a")
    for _ in range(3):
        requests.tick("a")
    requests.admit("b")
    for _ in range(4):
        requests.tick("a", "b")
    requests.tick("b")
    for _ in range(3):
        requests.tick("b", "a")
    for _ in range(2):
        requests.tick("b")
    requests.expect_recorded("a")
    requests.expect_recorded("b")


@torch.no_grad()
def test_requests_of_different_samplers_share_a_batch() -> None:
    model, images, split = build(), images_for(SMALL), split_for(SMALL)
    tables = [
        DiffusionSampler(SamplerMethod.ANCESTRAL, 4, clip=False).reverse(SMALL.schedule),
        DiffusionSampler(SamplerMethod.DDIM, 4, eta=0.5).reverse(SMALL.schedule),
    ]
    draw = counter_noise(torch.tensor([1, 2]), split, SMALL.patch_values)
    context, x = model.encode(images, split), draw(-1)
    for executed, index in enumerate(reversed(range(4))):
        step = SamplerTable.join([table.rows(torch.tensor([index])) for table in tables])
        x = step.take(x, clean(model, x, model.predict(x, step.time, context).patches, step, None), draw(executed))
    for sample, sampler in enumerate(
        (DiffusionSampler(SamplerMethod.ANCESTRAL, 4, clip=False), DiffusionSampler(SamplerMethod.DDIM, 4, eta=0.5))
    ):
        single = PatchSplit(split.visible[sample : sample + 1], split.masked[sample : sample + 1])
        ours = inpaint(
            model, images[sample : sample + 1], single, sampler, counter_noise(torch.tensor([1 + sample]), single, SMALL.patch_values)
        )
        torch.testing.assert_close(x[sample : sample + 1], ours.patches, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "sampler",
    [
        DiffusionSampler(SamplerMethod.ANCESTRAL, 7),
        DiffusionSampler(SamplerMethod.ANCESTRAL, 7, variance=VarianceType.BETA, clip=False),
        DiffusionSampler(SamplerMethod.DDIM, 4, clip=False),
        DiffusionSampler(SamplerMethod.DDIM, 5, eta=0.7),
        DiffusionSampler(SamplerMethod.ONE_STEP, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("target", list(PredictionTarget))
@pytest.mark.parametrize("schedule", [NoiseSchedule(), NoiseSchedule(ScheduleKind.COSINE, 200)], ids=["default", "cosine"])
def test_every_sampler_is_the_second_formulation(sampler: DiffusionSampler, target: PredictionTarget, schedule: NoiseSchedule) -> None:
    """The test uses double precision, since unclipped predictions of noise are divided by 4e-6."""
    model = build(schedule=schedule, target=target).double()
    images, split = images_for(SMALL, 1).double(), split_for(SMALL, 1)
    start, *noise = torch.randn(8, split.masked.shape[1], SMALL.patch_values, dtype=torch.float64)
    made = inpaint(model, images, split, sampler, lambda step: (start if step < 0 else noise[step]).unsqueeze(0)).patches[0]

    weights, (visible, masked) = model.state_dict(), (split.visible[0], split.masked[0])
    encoded = reference.features(weights, images[0].unsqueeze(1), visible, SMALL.heads)

    def predict(x: Tensor, t: int) -> Tensor:
        return reference.predict(weights, encoded, x, t, visible, masked, heads=SMALL.decoder_heads, u_shaped=True)[0]

    expected = reference.sample(
        predict,
        schedule.alphas_bar(),
        start,
        noise,
        method=sampler.method,
        count=sampler.steps,
        eta=sampler.eta,
        variance=sampler.variance,
        clip=sampler.clip,
        predicts_noise=target is PredictionTarget.EPS,
    )
    torch.testing.assert_close(made, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", list(DecoderType))
def test_a_picture_is_encoded_once_for_all_steps(kind: DecoderType) -> None:
    model, calls = build(decoder_type=kind), []
    model.blocks[0].register_forward_hook(lambda *_: calls.append("encoder"))
    for block in model.decoder_blocks:
        if block.cross_attn is not None:
            block.cross_attn.kv.register_forward_hook(lambda *_: calls.append("keys and values"))
    fill(model, images_for(SMALL), split_for(SMALL))
    assert calls.count("encoder") == 1
    assert calls.count("keys and values") == (0 if kind is DecoderType.JOINT else SMALL.decoder_depth)


def test_a_batch_of_ragged_masks_fills_as_single_pictures_do() -> None:
    model = build()
    images, split = build_ragged_batch()
    joint = fill(model, images, split, seeds=(1, 2, 3))
    for sample in range(2):
        single = fill(model, images[sample : sample + 1], alone(split, sample), seeds=(1 + sample,))
        torch.testing.assert_close(joint[sample : sample + 1], single, rtol=0.0, atol=5e-5)
    assert torch.equal(joint[2], images[2])


@pytest.mark.parametrize("model_options", [{}, {"frames": CLIP.frames, "patch_frames": 2, "image_size": CLIP.image_size}], ids=str)
def test_visible_patches_stay_as_they_are(model_options: dict[str, object]) -> None:
    model = build(**model_options)
    images, split = images_for(model.config), split_for(model.config)
    before, after = model.patchify(images), model.patchify(fill(model, images, split))
    changed = (before != after).any(dim=-1)
    assert torch.equal(changed.nonzero()[:, 1].view(2, -1), split.masked)


def test_no_mask_returns_the_picture_and_asks_no_model() -> None:
    model, images = build(), images_for(SMALL)
    model.register_forward_hook(lambda *_: pytest.fail("called"))
    model.blocks[0].register_forward_hook(lambda *_: pytest.fail("called"))
    nothing = PatchSplit.from_mask(torch.zeros(2, SMALL.patches, dtype=torch.bool))
    assert torch.equal(fill(model, images, nothing), images)


@pytest.mark.parametrize("masked", ["everything", "one patch", "one row"])
def test_extreme_masks(masked: str) -> None:
    _, rows, columns = SMALL.grid
    mask = torch.zeros(2, rows, columns, dtype=torch.bool)
    mask[:, : rows if masked == "everything" else 1, : 1 if masked == "one patch" else columns] = True
    model, images = build(), images_for(SMALL)
    filled = fill(model, images, PatchSplit.from_mask(mask))
    assert bool(filled.isfinite().all())
    assert torch.equal(model.patchify(filled)[~mask.flatten(1)], model.patchify(images)[~mask.flatten(1)])


def test_one_step_is_the_masked_autoencoder() -> None:
    model, images, split = build(), images_for(SMALL), split_for(SMALL)
    noise = torch.randn(*split.masked.shape, SMALL.patch_values)
    made = inpaint(model, images, split, DiffusionSampler(SamplerMethod.ONE_STEP, 1), lambda step: noise).patches
    predicted = model.predict(noise, torch.tensor([999, 999]), model.encode(images, split)).patches
    torch.testing.assert_close(made, clamp_to_colour_range(model, predicted))


def test_a_clipped_step_stays_within_the_colours() -> None:
    model, images, split = build(), images_for(SMALL), split_for(SMALL)
    model.decoder_pred.weight.data *= 20
    pixels = inpaint(model, images, split, FAST, counter_noise(torch.tensor([1, 2]), split, SMALL.patch_values)).patches
    colours = pixels.view(2, -1, 3) * torch.tensor(SMALL.std) + torch.tensor(SMALL.mean)
    assert colours.min() > -1e-6 and colours.max() < 1 + 1e-6
    free = inpaint(model, images, split, replace(FAST, clip=False), counter_noise(torch.tensor([1, 2]), split, SMALL.patch_values)).patches
    assert free.abs().max() > 4


def test_noise_prediction_samples_same_image_as_pixel_prediction() -> None:
    """A model that answers (x − √a p) / √(1 − a) where its twin answers p. Source: the definition of x_t."""
    schedule = NoiseSchedule(rho=1.0)
    pixels, noise = build(schedule=schedule).double(), build(schedule=schedule, target=PredictionTarget.EPS).double()
    left = schedule.alphas_bar()
    twin = pixels.predict

    def answer_in_noise(x: Tensor, t: Tensor, context: DecoderContext, *, times: Tensor | None = None):  # type: ignore[no-untyped-def]
        a, predicted = left[t].view(-1, 1, 1), twin(x, t, context, times=times)
        return replace(predicted, patches=(x - a.sqrt() * predicted.patches) / (1 - a).sqrt())

    noise.predict = answer_in_noise  # type: ignore[method-assign]
    images, split = images_for(SMALL).double(), split_for(SMALL)
    draws = {step: torch.randn(*split.masked.shape, SMALL.patch_values, dtype=torch.float64) for step in range(-1, 5)}
    results = [inpaint(model, images, split, FAST, lambda step: draws[step]).patches for model in (pixels, noise)]
    torch.testing.assert_close(*results, rtol=1e-7, atol=1e-7)


def test_a_model_of_normalised_patches_needs_their_statistics() -> None:
    model, images, split = build(normalise_patches=True), images_for(SMALL), split_for(SMALL)
    with pytest.raises(ValueError, match="statistics: this model predicts normalised patches"):
        fill(model, images, split)


def test_normalised_patches_with_statistics_are_not_clipped() -> None:
    model, images, split = build(normalise_patches=True), images_for(SMALL), split_for(SMALL)
    plain = build()
    draw = counter_noise(torch.tensor([1, 2]), split, SMALL.patch_values)
    patches = model.patchify(images).gather(1, split.masked.unsqueeze(-1).expand(-1, -1, SMALL.patch_values))
    mean, deviation = patch_statistics(patches)
    made = inpaint(model, images, split, FAST, draw, statistics=PatchStatistics(mean, deviation)).patches
    unclipped = inpaint(plain, images, split, replace(FAST, clip=False), draw).patches  # the same network and units
    torch.testing.assert_close(made, unclipped * deviation + mean)


def test_known_pixels_of_masked_patches_are_kept() -> None:
    model, images, split = build(), images_for(SMALL), PatchSplit.from_mask(centre_mask(2, SMALL.grid[1:]))
    images = images.clamp(-1, 1)
    made = torch.zeros(2, *SMALL.image_size, dtype=torch.bool)
    made[:, 9:14, 6:11] = True
    known_values = find_known_pixels(model, images, split, made)
    draw = counter_noise(torch.tensor([1, 2]), split, SMALL.patch_values)
    filled = inpaint(model, images, split, FAST, draw, known_pixels=known_values).pictures
    unchanged = ~made.unsqueeze(1).expand_as(images)
    assert torch.equal(filled[unchanged], images[unchanged])
    without = inpaint(model, images, split, FAST, draw).pictures
    assert not torch.equal(filled[~unchanged], without[~unchanged]), "known pixels have no influence on the others"


def test_known_pixels_are_kept_with_normalised_patches() -> None:
    model, images, split = build(normalise_patches=True), images_for(SMALL), PatchSplit.from_mask(centre_mask(2, SMALL.grid[1:]))
    made = torch.zeros(2, *SMALL.image_size, dtype=torch.bool)
    made[:, 9:14, 6:11] = True
    patches = model.patchify(images).gather(1, split.masked.unsqueeze(-1).expand(-1, -1, SMALL.patch_values))
    draw = counter_noise(torch.tensor([1, 2]), split, SMALL.patch_values)
    statistics = PatchStatistics(*patch_statistics(patches))
    filled = inpaint(
        model, images, split, FAST, draw, statistics=statistics, known_pixels=find_known_pixels(model, images, split, made)
    ).pictures
    unchanged = ~made.unsqueeze(1).expand_as(images)
    torch.testing.assert_close(filled[unchanged], images[unchanged], rtol=0.0, atol=1e-6)


def test_the_same_seed_fills_the_same_whatever_the_neighbours() -> None:
    """Results of one shape are equal bitwise."""
    model, images, split = build(), images_for(SMALL), split_for(SMALL)
    first = fill(model, images, split, seeds=(7, 8))
    other = torch.cat([images[:1], torch.randn_like(images[1:])])
    assert torch.equal(fill(model, other, split, seeds=(7, 99))[0], first[0])
    assert not torch.equal(fill(model, images, split, seeds=(6, 8))[0], first[0])


def test_every_step_can_be_watched() -> None:
    model, images, split = build(), images_for(SMALL), split_for(SMALL)
    seen: list[tuple[int, Tensor]] = []
    draw = counter_noise(torch.tensor([1, 2]), split, SMALL.patch_values)
    made = inpaint(model, images, split, FAST, draw, watch=lambda step, x0: seen.append((step, x0)))
    assert [step for step, _ in seen] == [0, 1, 2, 3, 4]
    assert torch.equal(seen[-1][1], made.patches)


def test_placing_what_was_taken_gives_the_picture_back() -> None:
    model = build()
    images, split = build_ragged_batch()
    patches = model.patchify(images).gather(1, split.masked.unsqueeze(-1).expand(-1, -1, SMALL.patch_values))
    assert torch.equal(paste_patches(model, images, split, patches), images)


def test_a_bfloat16_network_keeps_the_state_in_float32() -> None:
    """The tolerance after ten steps is 2 % of the norm of the recorded patches."""
    case = read_case(GOLDEN / "sample_cross_self")
    model = load(case).bfloat16()
    for request in ("a", "b"):
        mask = torch.zeros(1, model.config.patches, dtype=torch.bool).scatter_(1, case.inputs[f"{request}.ids_mask"], value=True)

        def draw(step: int, request: str = request) -> Tensor:
            return case.inputs[f"{request}.noise_T"] if step < 0 else case.inputs[f"{request}.step_noise"][step]

        made = inpaint(
            model, case.inputs[f"{request}.image"], PatchSplit.from_mask(mask), DiffusionSampler(SamplerMethod.ANCESTRAL, 10), draw
        )
        recorded = case.outputs[f"{request}.ddpm10.patches"]
        assert made.patches.dtype == torch.float32
        assert (made.patches - recorded).norm() < 0.02 * recorded.norm()


def test_pixels_are_clamped_and_rounded() -> None:
    values = torch.tensor([-5.0, 0.0, 5.0]).view(1, 3, 1, 1)
    assert to_pixels(values, SMALL.mean, SMALL.std).tolist() == [[[[0, 116, 255]]]]  # 0.456 · 255 = 116.28
