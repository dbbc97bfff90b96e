"""One image → the depth of each pixel, up to scale and shift: the encoder of EfficientNet-Lite0 (arXiv 1905.11946) and a decoder.

The encoder is that of the published classifier, whose normalisation is part of its convolutions. The decoder adds what was seen at finer
resolutions on its way up, as in MiDaS (arXiv 1907.01341, section 5).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.registry import Maker

STEM = 32
STAGES = ((16, 1, 3, 1, 1), (24, 2, 3, 2, 6), (40, 2, 5, 2, 6), (80, 3, 3, 2, 6), (112, 3, 5, 1, 6), (192, 4, 5, 2, 6), (320, 1, 3, 1, 6))
"""Channels, blocks, side of the kernel, stride of the first block, and how many times wider it is inside."""
EPSILON = 1e-3
"""This was added to variances by the normalisations that the convolutions have taken in."""
FINEST = (0, 1, 2, 4, 6)
"""Stages whose output is the last one of its resolution: half of the image's, a quarter, and so on to a 32nd."""


@dataclass(frozen=True)
class LiteDepthConfig:
    image_size: int = 160
    widths: tuple[int, ...] = (160, 96, 64, 32)
    """Channels of the decoder, from a 16th of the image's resolution to half of it."""
    output: Literal["depth"] = "depth"
    """Larger is farther."""
    background: Literal["kept", "mean"] = "kept"
    """mean: whatever is beside the object has the object's mean colour (`alone`)."""

    def __post_init__(self) -> None:
        if self.image_size % 32 or self.image_size <= 0:
            raise ValueError(f"image_size {self.image_size} is no multiple of 32")
        if len(self.widths) != len(FINEST) - 1 or min(self.widths) < 1:
            raise ValueError(f"widths {list(self.widths)}: {len(FINEST) - 1} positive numbers are needed")


class Same(nn.Conv2d):
    """A convolution padded as TensorFlow does: what is left over goes to the right and to the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        over = self.kernel_size[0] - self.stride[0]
        return F.conv2d(F.pad(x, (over // 2, over - over // 2) * 2), self.weight, self.bias, self.stride, 0, 1, self.groups)


class Block(nn.Module):
    """An inverted residual."""

    def __init__(self, channels: int, out: int, side: int, stride: int, wider: int) -> None:
        super().__init__()
        inner = channels * wider
        self.expand = nn.Conv2d(channels, inner, 1) if wider > 1 else None
        self.depthwise = Same(inner, inner, side, stride, groups=inner)
        self.project = nn.Conv2d(inner, out, 1)
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        inside = x if self.expand is None else F.relu6(self.expand(x))
        out: Tensor = self.project(F.relu6(self.depthwise(inside)))
        return x + out if self.residual else out


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Same(3, STEM, 3, 2)
        stages, channels = [], STEM
        for out, count, side, stride, wider in STAGES:
            blocks = [Block(channels if i == 0 else out, out, side, stride if i == 0 else 1, wider) for i in range(count)]
            stages.append(nn.Sequential(*blocks))
            channels = out
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, S, S) → features at a half, a quarter, an eighth, a 16th and a 32nd of the resolution."""
        x, seen = F.relu6(self.stem(images)), []
        for stage in self.stages:
            x = stage(x)
            seen.append(x)
        return [seen[number] for number in FINEST]


class LiteDepth(nn.Module):
    def __init__(self, config: LiteDepthConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder()
        *finer, coarsest = (STAGES[number][0] for number in FINEST)
        steps = list(pairwise((coarsest, *config.widths)))
        self.lateral = nn.ModuleList(nn.Conv2d(seen, coming, 1) for seen, (coming, _) in zip(reversed(finer), steps, strict=True))
        self.fuse = nn.ModuleList(nn.Conv2d(coming, out, 3, padding=1) for coming, out in steps)
        self.head = nn.Conv2d(config.widths[-1], 1, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, S, S) → (B, S, S)."""
        *finer, x = self.encoder(images)
        for seen, lateral, fuse in zip(reversed(finer), self.lateral, self.fuse, strict=True):
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False) + lateral(seen)
            x = F.relu(fuse(x))
        return F.interpolate(self.head(x), scale_factor=2.0, mode="bilinear", align_corners=False).squeeze(1)


def alone(images: Tensor, inside: Tensor) -> Tensor:
    """Images (B, 3, S, S) of which shares `inside` (B, S, S) of each pixel are the object's → the rest in its mean colour."""
    share = inside.unsqueeze(1)
    mean = (images * share).sum(dim=(2, 3), keepdim=True) / share.sum(dim=(2, 3), keepdim=True).clamp(min=1e-6)
    return torch.lerp(mean, images, share)


def image(model: LiteDepth, config: LiteDepthConfig, make: Maker) -> Callable[[], Tensor]:
    """A forward pass on random input."""
    pixels = make.normal(3, config.image_size, config.image_size)
    return lambda: model(pixels)


def start_from_lite(encoder: Encoder, weights: Mapping[str, Tensor]) -> None:
    """Load the published classifier, whose tensors have timm's names, in place. Raises ValueError for one that lacks something."""
    state = {}
    try:
        for name, (convolution, normalisation) in _sources(encoder).items():
            kinds = ("weight", "bias", "running_mean", "running_var")
            weight, bias, mean, variance = (weights[f"{normalisation}.{kind}"] for kind in kinds)
            scale = weight / torch.sqrt(variance + EPSILON)
            state[f"{name}.weight"] = weights[f"{convolution}.weight"] * scale.view(-1, 1, 1, 1)
            state[f"{name}.bias"] = bias - mean * scale
    except KeyError as error:
        raise ValueError(f"no EfficientNet-Lite0: {error} is missing") from error
    encoder.load_state_dict(state)


def _sources(encoder: Encoder) -> dict[str, tuple[str, str]]:
    """Return timm's names of each convolution and of the normalisation behind it, by our own."""
    found = {"stem": ("conv_stem", "bn1")}
    for name, module in encoder.named_modules():
        if isinstance(module, Block):
            there = name.replace("stages", "blocks")
            parts = [("expand", "conv_pw"), ("depthwise", "conv_dw"), ("project", "conv_pwl")]
            if module.expand is None:
                parts = [("depthwise", "conv_dw"), ("project", "conv_pw")]
            for number, (own, theirs) in enumerate(parts, 1):
                found[f"{name}.{own}"] = (f"{there}.{theirs}", f"{there}.bn{number}")
    return found
