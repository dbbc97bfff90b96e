"""Back of an object behind each seen point: its thickness there, and the colour of its far side. A small U-Net (arXiv 1505.04597) at
the size of the map of seen points, where each of its answers belongs to one of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 4
"""Channels that are normalised together: with a channel each, what is the same everywhere would be lost."""
_INPUTS = 3 + 3 + 1
"""Colour, point, and whether there is one."""
_THICKNESS = 0.5
"""With which training begins, in the units of points."""


@dataclass(frozen=True)
class BackConfig:
    widths: tuple[int, ...] = (24, 48, 96, 128)
    """Channels from the map's resolution down to the coarsest, each half as fine as the one before."""

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or any(width < GROUPS or width % GROUPS for width in self.widths):
            raise ValueError(f"widths {list(self.widths)}: two multiples of {GROUPS} at least are needed")

    @property
    def step(self) -> int:
        """The map's side must be a multiple of it."""
        return int(2 ** (len(self.widths) - 1))


@dataclass(frozen=True)
class Told:
    """Answers for each pixel; where no point was seen they mean nothing."""

    thickness: Tensor
    """(B, n, n), from the seen point along its ray to where that leaves the object for the last time; not below 0."""
    colours: Tensor
    """(B, n, n, 3), of what is there; in 0..1, or a little outside."""


class Back(nn.Module):
    def __init__(self, config: BackConfig) -> None:
        super().__init__()
        finest = config.widths[0]
        self.down = nn.ModuleList(Pair(narrow, wide) for narrow, wide in pairwise((_INPUTS, *config.widths)))
        self.up = nn.ModuleList(Pair(wide + narrow, narrow) for narrow, wide in reversed(list(pairwise(config.widths))))
        self.head = nn.Conv2d(finest, 4, 1)
        nn.init.zeros_(self.head.weight)
        first = torch.tensor([math.log(math.expm1(_THICKNESS)), 0.0, 0.0, 0.0])  # softplus is applied to it
        self.head.bias = nn.Parameter(first)

    def forward(self, images: Tensor, seen: Tensor, valid: Tensor) -> Told:
        """images (B, 3, any, any) in 0..1; seen (B, n, n, 3), and whether there is a point, bool (B, n, n)."""
        there = valid.unsqueeze(1)
        colours, points = shrunk(images, seen.shape[1]), seen.permute(0, 3, 1, 2).masked_fill(~there, 0.0)
        x = torch.cat([2 * colours - 1, points, there.to(points.dtype)], dim=1).to(self.head.weight.dtype)
        finer: list[Tensor] = []
        for number, pair in enumerate(self.down):
            x = pair(F.avg_pool2d(x, 2) if number else x)
            finer.append(x)
        for pair, beside in zip(self.up, reversed(finer[:-1]), strict=True):
            x = pair(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), beside], dim=1))
        told = self.head(x).float()
        return Told(F.softplus(told[:, 0]), (colours + told[:, 1:]).permute(0, 2, 3, 1))


class Pair(nn.Sequential):
    """Two convolutions."""

    def __init__(self, narrow: int, wide: int) -> None:
        layers = [
            layer
            for channels in (narrow, wide)
            for layer in (nn.Conv2d(channels, wide, 3, padding=1), nn.GroupNorm(GROUPS, wide), nn.SiLU())
        ]
        super().__init__(*layers)


def shrunk(images: Tensor, size: int) -> Tensor:
    """(B, 3, any, any) → (B, 3, size, size), each pixel a mean of those that it covers."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
