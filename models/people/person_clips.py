"""Clips around the people in a track: what LART's appearance features are computed from, by MViT with boxes or by another video network.

It follows the description of the published demo, which assumes 30 frames a second. Views of whole videos are `models.media.clip_sampling`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.media.clip_sampling import resize_short_side

GROUP = 6
"""Frames of a track that share one feature: five per second."""

WIDEST, NARROWEST = 1.2, 0.8
"""Width to height of the images around a track; more extreme ones are cropped."""


@dataclass(frozen=True)
class Group:
    """Frames of a track that share the feature of a clip around the middle one."""

    first: int
    end: int
    """Behind the last."""

    @property
    def middle(self) -> int:
        return (self.first + self.end) // 2


def clip_frames(middle: int, length: int, *, frames: int, stride: int) -> Tensor:
    """The frames of a track, (frames,) int64, that make the clip around its frame `middle`; beyond its ends the last one repeats."""
    span = frames * stride
    around = torch.linspace(0, span, frames).long()
    return (middle - span // 2 + around).clamp(0, length - 1)


def shrink(images: Tensor, short_side: int) -> Tensor:
    """The part of the images around a track that is looked at, with a short side of `short_side`: uint8 (T, H, W, 3) → uint8 (T, h, w, 3).

    Rounded to whole levels, as the published code's images are; its fixed-point arithmetic may differ by one level.
    """
    left, top = margins(images.shape[2], images.shape[1])
    kept = images[:, top : images.shape[1] - top, left : images.shape[2] - left]
    resized = resize_short_side(kept.permute(0, 3, 1, 2).float(), short_side)  # (T, 3, h, w)
    return resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def shrunk_box(box: Sequence[float], size: tuple[int, int], short_side: int) -> Tensor:
    """x, y, width, height in images of a height and width → x1, y1, x2, y2 in those of `shrink`, (4,)."""
    (x, y, width, height), (rows, columns) = box, size
    corners = torch.tensor([int(x), int(y), int(x + width), int(y + height)], dtype=torch.float32)
    left, top = margins(columns, rows)
    sides = sorted((columns - 2 * left, rows - 2 * top))
    long_side = sides[1] if sides[0] == short_side else math.floor(sides[1] / sides[0] * short_side)
    return (corners - torch.tensor([left, top, left, top])) * (long_side / sides[1])


def normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (T, h, w, 3) → (3, T, h, w). mean and std are for 0..1."""
    colours = (images / 255 - images.new_tensor(mean, dtype=torch.float32)) / images.new_tensor(std, dtype=torch.float32)
    return colours.permute(3, 0, 1, 2)


def margins(width: int, height: int) -> tuple[int, int]:
    """Pixels to cut off on the left and right, and on top and bottom, of an image that is too wide or too narrow."""
    if width / height > WIDEST:
        return int((width - WIDEST * height) // 2), 0
    if width / height < NARROWEST:
        return 0, int((height - width / NARROWEST) // 2)
    return 0, 0
