"""Depth of an image up to scale and shift (arXiv 1907.01341, section 4): the error that is left after the best scale and shift."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.systems.depth.model import LiteDepth, fill_background
from training import random_draws
from training.objectives.checks import require_model, require_tensor
from training.objectives.protocols import Batch, ObjectiveContext, ObjectiveSettings

BLOTS = 5
"""Places across an image between which its light changes."""


class DepthSettings(ObjectiveSettings):
    kind: Literal["depth"] = "depth"
    gradients: float = Field(default=0.5, ge=0)
    """Weight of the differences of neighbouring errors, at four resolutions."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability that an image and its depth are mirrored."""
    smaller: float = Field(default=0.4, ge=0, lt=1)
    """Largest share of its side that an image loses, its border filled with its own edge: objects fill their images more or less."""
    light: float = Field(default=0.0, ge=0, lt=1)
    """Largest change of an image's contrast, as a share; half as much of the strength of each of its colours, and of its brightness, in
    normalised pixels: renders are lit more evenly than what is photographed."""
    shadows: float = Field(default=0.0, ge=0, lt=1)
    """Largest share of its light that a place loses: across one soft edge, which a shadow throws over it, and from blot to blot."""

    def build(self, model: nn.Module, context: ObjectiveContext) -> DepthObjective:
        return DepthObjective(require_model(self.kind, model, LiteDepth), self)


class DepthObjective(nn.Module):
    """Batch: normalised `pixels` (B, 3, S, S); `points` (B, n, n, 3), whose third coordinate is depth in any unit, and whether there is
    one, `valid` (B, n, n)."""

    SCALES = 4

    def __init__(self, model: LiteDepth, settings: DepthSettings) -> None:
        super().__init__()
        self.model = model
        self.settings = settings

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        pixels, depth, valid = (
            require_tensor(batch, "pixels"),
            require_tensor(batch, "points")[..., 2],
            require_tensor(batch, "valid").bool(),
        )
        with torch.autocast(pixels.device.type, enabled=False):  # places of pixels need more than bfloat16's 8 bits
            pixels, depth, valid = self.augment(pixels, depth, valid, batch["draw"])
            pixels = self.relight(self.shade(pixels, batch["draw"]), batch["draw"])
            if self.model.config.background == "mean":
                share = F.interpolate(valid.unsqueeze(1).to(pixels), size=pixels.shape[2:], mode="bilinear", align_corners=False)
                pixels = fill_background(pixels, share.squeeze(1))
        predicted = F.interpolate(self.model(pixels).float().unsqueeze(1), size=depth.shape[1:], mode="area").squeeze(1)
        errors = align(predicted, depth, valid) - spread_to_one(depth, valid)  # (B, n, n), 0 where nothing is known
        each = (errors.abs() * valid).flatten(1).sum(dim=1) / valid.flatten(1).sum(dim=1).clamp(min=1)
        slopes = gradients(errors, valid, self.SCALES)
        loss = (each + self.settings.gradients * slopes).mean()
        return {"loss": loss, "loss_depth": each.mean().detach(), "loss_gradients": slopes.mean().detach()}

    def augment(self, pixels: Tensor, depth: Tensor, valid: Tensor, draw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mirror, shrink and move images (B, 3, S, S), depth and valid (B, n, n), each at random."""
        flip = (random_draws.uniform(draw, (1,), "flip") < self.settings.flip).view(-1, 1, 1)
        pixels = torch.where(flip.unsqueeze(1), pixels.flip(-1), pixels)
        depth, valid = torch.where(flip, depth.flip(-1), depth), torch.where(flip, valid.flip(-1), valid)
        if not self.settings.smaller:
            return pixels, depth, valid
        size, place = random_draws.uniform(draw, (1,), "smaller").view(-1, 1), random_draws.uniform(draw, (2,), "place")
        grow = 1 / (1 - self.settings.smaller * size)  # (B, 1)
        shift = (2 * place - 1) * (grow - 1)  # (B, 2)
        matrix = torch.cat([torch.diag_embed(grow.expand(-1, 2)), shift.unsqueeze(-1)], dim=2).to(pixels)  # (B, 2, 3)
        moved = [
            F.grid_sample(values, F.affine_grid(matrix, list(values.shape), align_corners=False), mode, padding, align_corners=False)
            for values, mode, padding in (
                (pixels, "bilinear", "border"),
                (depth.unsqueeze(1), "nearest", "zeros"),
                (valid.unsqueeze(1).to(pixels), "nearest", "zeros"),
            )
        ]
        return moved[0], moved[1].squeeze(1), moved[2].squeeze(1) > 0.5

    def shade(self, pixels: Tensor, draw: Tensor) -> Tensor:
        """Darken parts of images (B, 3, S, S), in which black is -1."""
        max_shadow, (height, width) = self.settings.shadows, pixels.shape[2:]
        if not max_shadow:
            return pixels
        blots = F.interpolate(
            random_draws.uniform(draw, (1, BLOTS, BLOTS), "blots"), size=(height, width), mode="bicubic", align_corners=False
        )
        angle, place, soft = random_draws.uniform(draw, (3,), "edge").view(-1, 3, 1, 1).unbind(dim=1)
        ys, xs = (torch.linspace(-1, 1, side, device=pixels.device) for side in (height, width))
        across = torch.cos(2 * torch.pi * angle) * xs + torch.sin(2 * torch.pi * angle) * ys[:, None]  # (B, H, W)
        edge = torch.sigmoid((across - (2 * place - 1)) * (4 + 60 * soft))
        dark = random_draws.uniform(draw, (2,), "dark").view(-1, 2, 1, 1) * max_shadow
        light = (1 - dark[:, :1] * edge.unsqueeze(1)) * (1 - dark[:, 1:] * blots.clamp(0, 1))
        return (pixels + 1) * light.to(pixels) - 1

    def relight(self, pixels: Tensor, draw: Tensor) -> Tensor:
        """Change contrast, colours and brightness of images (B, 3, S, S) at random."""
        if not self.settings.light:
            return pixels
        contrast, colours, brightness = (
            (2 * random_draws.uniform(draw, (count,), stream) - 1).mul(self.settings.light).view(-1, count, 1, 1).to(pixels)
            for count, stream in ((1, "contrast"), (3, "colours"), (1, "brightness"))
        )
        return pixels * (1 + contrast) * (1 + colours / 2) + brightness / 2


def spread_to_one(depth: Tensor, valid: Tensor) -> Tensor:
    """Subtract the mean of (B, n, n) and divide by the standard deviation, both of valid values; 0 elsewhere."""
    count = valid.sum(dim=(1, 2), keepdim=True).clamp(min=1)
    masked = depth * valid
    centred = (masked - masked.sum(dim=(1, 2), keepdim=True) / count) * valid
    std = (centred.square().sum(dim=(1, 2), keepdim=True) / count).sqrt()
    return centred / std.clamp(min=1e-6)


def align(predicted: Tensor, depth: Tensor, valid: Tensor) -> Tensor:
    """Scale and shift predictions (B, n, n) to the least squares fit of `spread_to_one(depth)`; 0 outside.

    A negative scale counts as 0: farther points must get larger values.
    """
    normalised, true = spread_to_one(predicted, valid), spread_to_one(depth, valid)
    count = valid.sum(dim=(1, 2), keepdim=True).clamp(min=1)
    return normalised * ((normalised * true).sum(dim=(1, 2), keepdim=True) / count).clamp(min=0)


def gradients(errors: Tensor, valid: Tensor, scales: int) -> Tensor:
    """Return the mean absolute difference (B,) of neighbours of (B, n, n), over resolutions that halve."""
    total = errors.new_zeros(errors.shape[0])
    for scale in range(scales):
        step = 2**scale
        some, is_valid = errors[:, ::step, ::step], valid[:, ::step, ::step]
        for axis in (1, 2):
            length = some.shape[axis] - 1
            both = is_valid.narrow(axis, 1, length) & is_valid.narrow(axis, 0, length)
            difference = (some.narrow(axis, 1, length) - some.narrow(axis, 0, length)).abs() * both
            total = total + difference.flatten(1).sum(dim=1) / both.flatten(1).sum(dim=1).clamp(min=1)
    return total / (2 * scales)
