"""Clips around the people in a track: what LART's appearance features are computed from, by MViT with boxes or by another video network.

It follows the description of the published demo, which assumes 30 frames a second. Views of whole videos are `models.media.video_views`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.media.video_views import resize_short_side

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


def groups(length: int) -> list[Group]:
    """The groups of a track of `length` frames."""
    return [Group(first, min(first + GROUP, length)) for first in range(0, length, GROUP)]


def clip_frames(middle: int, length: int, *, frames: int, stride: int) -> Tensor:
    """The frames of a track, (frames,) int64, that make the clip around its frame `middle`; beyond its ends the last one repeats."""
    span = frames * stride
    around = torch.linspace(0, span, frames).long()
    return (middle - span // 2 + around).clamp(0, length - 1)


def person_clip(
    images: Tensor, box: Sequence[float], *, short_side: int, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Input of a box head for one person: a clip (3, T, h, w) and a box (4,), x1, y1, x2, y2 in its pixels.

    images: uint8 (T, H, W, 3), RGB; box: x, y, width, height in them. Rounded to whole levels after resizing, as the published code's
    images are; its fixed-point arithmetic may differ by one level.
    """
    x, y, width, height = box
    corners = torch.tensor([int(x), int(y), int(x + width), int(y + height)], dtype=torch.float32)
    left, top = margins(images.shape[2], images.shape[1])
    images = images[:, top : images.shape[1] - top, left : images.shape[2] - left]
    corners = corners - torch.tensor([left, top, left, top])
    long_side = max(images.shape[1:3])
    resized = resize_short_side(images.permute(0, 3, 1, 2).float(), short_side).round().clamp(0, 255)  # (T, 3, h, w)
    factor = max(resized.shape[2:]) / long_side
    colours = (resized / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    return colours.transpose(0, 1), corners * factor


def margins(width: int, height: int) -> tuple[int, int]:
    """Pixels to cut off on the left and right, and on top and bottom, of an image that is too wide or too narrow."""
    if width / height > WIDEST:
        return int((width - WIDEST * height) // 2), 0
    if width / height < NARROWEST:
        return 0, int((height - width / NARROWEST) // 2)
    return 0, 0
