"""One image → the depth of each pixel, up to scale and shift: the encoder of EfficientNet-Lite0 (arXiv 1905.11946) and a decoder.

The encoder is that of the published classifier, whose normalisation is part of its convolutions. The decoder adds the encoder's features
of finer resolutions on its way up, as in MiDaS (arXiv 1907.01341, section 5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.efficientnet_lite import STAGES, EfficientNetLiteEncoder
from models.registry import InputMaker

SKIP_STAGES = (0, 1, 2, 4, 6)
"""Stages whose output is the last one of its resolution: half of the image's, a quarter, and so on to a 32nd."""


@dataclass(frozen=True)
class LiteDepthConfig:
    image_size: int = 160
    widths: tuple[int, ...] = (160, 96, 64, 32)
    """Channels of the decoder, from a 16th of the image's resolution to half of it."""
    output: Literal["depth"] = "depth"
    """Larger is farther."""
    background: Literal["kept", "mean"] = "kept"
    """mean: pixels outside the object have the object's mean colour (`fill_background`)."""

    def __post_init__(self) -> None:
        if self.image_size % 32 or self.image_size <= 0:
            raise ValueError(f"image_size {self.image_size} is not a multiple of 32")
        if len(self.widths) != len(SKIP_STAGES) - 1 or min(self.widths) < 1:
            raise ValueError(f"widths {list(self.widths)}: {len(SKIP_STAGES) - 1} positive numbers are needed")


class LiteDepth(nn.Module):
    def __init__(self, config: LiteDepthConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = EfficientNetLiteEncoder()
        *finer, coarsest = (STAGES[number][0] for number in SKIP_STAGES)
        steps = list(pairwise((coarsest, *config.widths)))
        self.lateral = nn.ModuleList(nn.Conv2d(skip, width, 1) for skip, (width, _) in zip(reversed(finer), steps, strict=True))
        self.fuse = nn.ModuleList(nn.Conv2d(width, out, 3, padding=1) for width, out in steps)
        self.head = nn.Conv2d(config.widths[-1], 1, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Predict depth: normalised images (B, 3, S, S) → (B, S, S)."""
        features = self.encoder(images)
        *finer, x = (features[number] for number in SKIP_STAGES)
        for skip, lateral, fuse in zip(reversed(finer), self.lateral, self.fuse, strict=True):
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False) + lateral(skip)
            x = F.relu(fuse(x))
        return F.interpolate(self.head(x), scale_factor=2.0, mode="bilinear", align_corners=False).squeeze(1)


def fill_background(images: Tensor, inside: Tensor) -> Tensor:
    """Give the background of images (B, 3, S, S) the object's mean colour. inside: the object's fraction of each pixel, (B, S, S)."""
    fraction = inside.unsqueeze(1)
    mean = (images * fraction).sum(dim=(2, 3), keepdim=True) / fraction.sum(dim=(2, 3), keepdim=True).clamp(min=1e-6)
    return torch.lerp(mean, images, fraction)


def image(model: LiteDepth, config: LiteDepthConfig, make: InputMaker) -> Callable[[], Tensor]:
    """Return a forward pass on one random image, whose output is (1, S, S)."""
    pixels = make.normal(3, config.image_size, config.image_size)
    return lambda: model(pixels)
