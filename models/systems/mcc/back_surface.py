"""Back surface of an object: thickness behind each seen point, and colour of the far side.

Predicted by a small U-Net (arXiv 1505.04597) at the size of the map of seen points, one output per point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_GROUPS = 4
"""Number of groups of channels per norm: if each channel were normalised alone, values that are constant over the map would be lost."""
_INPUT_CHANNELS = 3 + 3 + 1
"""Number of input channels: colour, point, and whether there is a point."""
_INITIAL_THICKNESS = 0.5
"""Thickness at the start of training, in the units of points."""


@dataclass(frozen=True)
class BackSurfaceConfig:
    widths: tuple[int, ...] = (24, 48, 96, 128)
    """Channels from the map's resolution down to the coarsest; each level has half the resolution of the one before."""

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or any(width < NORM_GROUPS or width % NORM_GROUPS for width in self.widths):
            raise ValueError(f"widths {list(self.widths)}: two multiples of {NORM_GROUPS} at least are needed")

    @property
    def size_divisor(self) -> int:
        """Number that must divide the map's side."""
        return int(2 ** (len(self.widths) - 1))


@dataclass(frozen=True)
class BackSurface:
    """Predicted back surface per pixel; undefined where no point was seen."""

    thickness: Tensor
    """(B, n, n), distance along the ray from the seen point to where the ray leaves the object for the last time; not below 0."""
    colours: Tensor
    """(B, n, n, 3), of the back surface; in 0..1, or slightly outside."""


class BackSurfaceNet(nn.Module):
    def __init__(self, config: BackSurfaceConfig) -> None:
        super().__init__()
        finest = config.widths[0]
        self.down = nn.ModuleList(DoubleConv(narrow, wide) for narrow, wide in pairwise((_INPUT_CHANNELS, *config.widths)))
        self.up = nn.ModuleList(DoubleConv(wide + narrow, narrow) for narrow, wide in reversed(list(pairwise(config.widths))))
        self.head = nn.Conv2d(finest, 4, 1)
        nn.init.zeros_(self.head.weight)
        first = torch.tensor([math.log(math.expm1(_INITIAL_THICKNESS)), 0.0, 0.0, 0.0])  # softplus is applied to it
        self.head.bias = nn.Parameter(first)

    def forward(self, images: Tensor, seen: Tensor, valid: Tensor) -> BackSurface:
        """Predict the back surface of images (B, 3, any, any) in 0..1.

        seen: points (B, n, n, 3). valid: bool (B, n, n), False without a point.
        """
        is_valid = valid.unsqueeze(1)
        colours, points = area_resize(images, seen.shape[1]), seen.permute(0, 3, 1, 2).masked_fill(~is_valid, 0.0)
        x = torch.cat([2 * colours - 1, points, is_valid.to(points.dtype)], dim=1).to(self.head.weight.dtype)
        skips: list[Tensor] = []
        for level, convs in enumerate(self.down):
            x = convs(F.avg_pool2d(x, 2) if level else x)
            skips.append(x)
        for convs, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = convs(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], dim=1))
        outputs = self.head(x).float()
        return BackSurface(F.softplus(outputs[:, 0]), (colours + outputs[:, 1:]).permute(0, 2, 3, 1))


class DoubleConv(nn.Sequential):
    def __init__(self, narrow: int, wide: int) -> None:
        layers = [
            layer
            for channels in (narrow, wide)
            for layer in (nn.Conv2d(channels, wide, 3, padding=1), nn.GroupNorm(NORM_GROUPS, wide), nn.SiLU())
        ]
        super().__init__(*layers)


def area_resize(images: Tensor, size: int) -> Tensor:
    """Resize images by area: (B, 3, any, any) → (B, 3, size, size), each pixel the mean of the pixels that it covers."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
