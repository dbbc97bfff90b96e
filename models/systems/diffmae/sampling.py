"""Sampling of masked patches with DiffMAE. Samples of a step's batch may differ in time, sampler and mask, so that a scheduler can mix
requests freely; `inpaint` runs all steps of one batch.

Noise comes from a counter (Philox-4x32-10, "Parallel random numbers: as easy as 1, 2, 3", SC 2011): that of a sample does not depend on the
others of its batch, their order, padding, or a pause between steps. The state x, tables and updates keep the precision of the noise,
float32 in service, whatever the network's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.layers.masked_encoder import gather_tokens
from models.layers.patches import patchify_tubes
from models.registry import ForwardCall, InputMaker
from models.systems.diffmae.diffusion import DiffusionSampler, SamplerTable
from models.systems.diffmae.masks import PatchSplit
from models.systems.diffmae.model import DiffMAE, DiffMAEConfig, PredictionTarget
from models.systems.diffmae.system import MASKED

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def counter_normal(seeds: Tensor, step: Tensor, places: Tensor, values: int) -> Tensor:
    """Draw float32 from N(0, 1): (B, M, values). seeds: (B,) int64; step: (B,), from -1 up; places: (B, M), raster indices of patches.

    Equal (seed, step, place, value) give equal numbers, whatever their position in the batch.
    """
    blocks = torch.arange(-(-values // 4), device=places.device)
    batch, count = places.shape
    shape = (batch, count, len(blocks))
    counter = (
        blocks.expand(shape),
        places.unsqueeze(-1).expand(shape),
        (step + 1).view(batch, 1, 1).expand(shape),
        torch.zeros(shape, dtype=torch.int64, device=places.device),
    )
    key = seeds.view(batch, 1, 1)
    words = philox(counter, (key & _LOW, key >> 32 & _LOW))
    uniform = [(word.double() + 0.5) / 2**32 for word in words]  # inside (0, 1)
    pairs = [_box_muller(uniform[0], uniform[1]), _box_muller(uniform[2], uniform[3])]
    drawn = torch.stack([value for pair in pairs for value in pair], dim=-1)  # (B, M, blocks, 4)
    return drawn.flatten(2)[..., :values].float()


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return four 32-bit words for each counter, in int64 tensors of the shape (...) that counter and key broadcast to."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]  # may wrap: the bits are those of the unsigned product
        a, b, c, d = _high(second) ^ b ^ k0, second & _LOW, _high(first) ^ d ^ k1, first & _LOW
        k0, k1 = k0 + _WEYL[0] & _LOW, k1 + _WEYL[1] & _LOW
    return a, b, c, d


def _high(product: Tensor) -> Tensor:
    return product >> 32 & _LOW


def _box_muller(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    radius, angle = (-2 * u.log()).sqrt(), 2 * math.pi * v
    return radius * angle.cos(), radius * angle.sin()


Noise = Callable[[int], Tensor]
"""Function of the executed step, -1 for the start, that returns (B, M, P) from N(0, 1)."""


@dataclass(frozen=True)
class KnownPixels:
    """Pixels in masked patches that are not generated: a user's mask rarely ends at the edge of a patch."""

    patches: Tensor
    """(B, M, P), normalised."""
    generated: Tensor
    """(B, M, P) bool, True if a value is to be generated."""

    @property
    def nbytes(self) -> int:
        return self.patches.nbytes + self.generated.nbytes

    def inject(self, x0: Tensor) -> Tensor:
        return torch.where(self.generated, x0, self.patches.to(x0.dtype))

    def convert_to_units_of(self, statistics: PatchStatistics) -> KnownPixels:
        return KnownPixels((self.patches - statistics.mean) / statistics.std, self.generated)


@dataclass(frozen=True)
class PatchStatistics:
    """Mean and standard deviation of each masked patch, (B, M, 1): a model of normalised patches cannot know them."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class InpaintOutput:
    patches: Tensor
    """(B, M, P), normalised pixels, neither clamped nor rounded."""
    pictures: Tensor
    """The input with these patches in their places."""


def counter_noise(seeds: Tensor, split: PatchSplit, values: int, temperature: float = 1.0) -> Noise:
    """Return noise, scaled by temperature, that each sample draws patch by patch from its seed, (B,): the same in any batch and mask."""
    return lambda step: temperature * counter_normal(seeds, torch.full_like(seeds, step), split.masked, values)


@torch.no_grad()
def inpaint(
    model: DiffMAE,
    images: Tensor,
    split: PatchSplit,
    sampler: DiffusionSampler,
    draw: Noise,
    *,
    statistics: PatchStatistics | None = None,
    known_pixels: KnownPixels | None = None,
    watch: Callable[[int, Tensor], None] | None = None,
) -> InpaintOutput:
    """Fill masked patches of normalised images (B, channels, H, W) or clips; pixels under the mask have no influence.

    statistics: required by models of normalised patches; predictions are then not clipped. watch: called with each executed step and its
    predicted clean patches (B, M, P). Raises ValueError if a model of normalised patches gets no statistics.
    """
    if model.config.normalise_patches and statistics is None:
        raise ValueError("statistics: this model predicts normalised patches; it needs the mean and std of each patch to generate pixels")
    if split.masked.shape[1] == 0:
        return InpaintOutput(images.new_zeros(len(images), 0, model.config.patch_values), images)
    if known_pixels is not None and statistics is not None:
        known_pixels = known_pixels.convert_to_units_of(statistics)
    table = sampler.reverse(model.config.schedule)
    noisy, steps = table.sigma.gt(0).tolist(), table.to(images.device)
    context, times = model.encode(images.to(model.noise_embed.weight.dtype), split), model.time_table()
    x = draw(-1)
    for executed, index in enumerate(reversed(range(len(steps)))):
        step = steps.rows(torch.full((len(images),), index, device=images.device))
        x0 = clean(model, x, model.predict(x, step.time, context, times=times).patches, step, known_pixels)
        if watch is not None:
            watch(executed, x0)
        x = step.take(x, x0, draw(executed) if noisy[index] else None)
    patches = x if statistics is None else x * statistics.std + statistics.mean
    return InpaintOutput(patches, paste_patches(model, images, split, patches))


def clean(model: DiffMAE, x: Tensor, predicted: Tensor, step: SamplerTable, known_pixels: KnownPixels | None) -> Tensor:
    """Compute clean patches, which can be shown at any step, from noisy x and the network's prediction: (B, M, P) each."""
    x0 = predicted if model.config.target is PredictionTarget.X0 else step.x0_from_noise(x, predicted)
    if not model.config.normalise_patches:
        x0 = torch.where(step.clip.view(-1, 1, 1), clamp_to_colour_range(model, x0), x0)
    return x0 if known_pixels is None else known_pixels.inject(x0)


def clamp_to_colour_range(model: DiffMAE, patches: Tensor) -> Tensor:
    """Clamp patches (B, M, P), channels last, to the range of each channel. Bounds are plain numbers, so that no step waits for a copy."""
    mean, std, channels = model.config.mean, model.config.std, model.config.channels
    batch, count, values = patches.shape
    planes = patches.reshape(batch, count, values // channels, channels).unbind(-1)
    clamped = [plane.clamp(-m / s, (1 - m) / s) for plane, m, s in zip(planes, mean, std, strict=True)]
    return torch.stack(clamped, dim=-1).flatten(-2)


def paste_patches(model: DiffMAE, images: Tensor, split: PatchSplit, patches: Tensor) -> Tensor:
    """Return the images with `patches` (B, M, P) at the masked positions."""
    everything = model.patchify(images)
    batch, count, values = everything.shape
    places = split.masked if split.masked_size is None else split.masked.where(split.masked_size.squeeze(-1) > 0, count)
    room = torch.cat([everything, everything.new_zeros(batch, 1, values)], dim=1)  # padding goes to the end, which is cut off
    filled = room.scatter(1, places.unsqueeze(-1).expand_as(patches), patches.to(everything.dtype))
    return model.unpatchify(filled[:, :count])


def find_known_pixels(model: DiffMAE, images: Tensor, split: PatchSplit, mask: Tensor) -> KnownPixels:
    """Find known pixels in masked patches. mask: the user's mask in the model's size, bool (B, H, W), or (B, T, H, W) for clips."""
    config = model.config
    frames = mask if config.frames else mask.unsqueeze(1)
    spread = frames.unsqueeze(1).expand(-1, config.channels, -1, -1, -1)
    generated = patchify_tubes(spread, config.patch_frames, config.patch_size)
    return KnownPixels(gather_tokens(model.patchify(images), split.masked), gather_tokens(generated, split.masked))


@dataclass(frozen=True)
class DummyMaskedBatch:
    pixels: Tensor
    split: PatchSplit
    noisy: Tensor
    times: Tensor

    @staticmethod
    def draw(config: DiffMAEConfig, make: InputMaker) -> DummyMaskedBatch:
        noise = make.uniform(config.patches)
        split = PatchSplit.from_noise(noise, MASKED)
        frames = () if config.frames is None else (config.frames,)
        return DummyMaskedBatch(
            make.normal(config.channels, *frames, *config.image_size),
            split,
            make.normal(split.masked.shape[1], config.patch_values),
            torch.full((len(noise),), config.schedule.steps // 2, device=noise.device),
        )


def one_step(model: DiffMAE, config: DiffMAEConfig, make: InputMaker) -> ForwardCall:
    """Return a call that encodes the visible patches and denoises the others once."""
    batch = DummyMaskedBatch.draw(config, make)
    return lambda: model.predict(batch.noisy, batch.times, model.encode(batch.pixels, batch.split))
