"""Clips around the people in a track, from which MViT with boxes or another video network computes LART's appearance features.

Follows the description of the published demo, which assumes 30 frames per second. Views of whole videos are `models.media.clip_sampling`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.media.clip_sampling import resize_short_side

GROUP_FRAMES = 6
"""Number of frames of a track that share one feature: five features per second."""

MAX_ASPECT, MIN_ASPECT = 1.2, 0.8
"""Bounds of width to height of the images around a track; others are cropped."""


@dataclass(frozen=True)
class AppearanceGroup:
    """Frames of a track that share the feature of a clip around the central one."""

    first: int
    end: int
    """One after the last frame."""

    @property
    def centre(self) -> int:
        return (self.first + self.end) // 2


def clip_frame_indices(centre: int, length: int, *, frames: int, stride: int) -> Tensor:
    """Return the indices, int64 (frames,), of a track's frames in the clip around frame `centre`; the track's first and last frame
    repeat."""
    span = frames * stride
    offsets = torch.linspace(0, span, frames).long()
    return (centre - span // 2 + offsets).clamp(0, length - 1)


def crop_and_resize(images: Tensor, short_side: int) -> Tensor:
    """Crop images around a track to the allowed aspect and resize them to `short_side`: uint8 (T, H, W, 3) → uint8 (T, h, w, 3).

    Rounds to whole levels, as published; the published fixed-point arithmetic may differ by one level.
    """
    left, top = aspect_margins(images.shape[2], images.shape[1])
    cropped = images[:, top : images.shape[1] - top, left : images.shape[2] - left]
    resized = resize_short_side(cropped.permute(0, 3, 1, 2).float(), short_side)  # (T, 3, h, w)
    return resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def resize_box(box: Sequence[float], size: tuple[int, int], short_side: int) -> Tensor:
    """Map a box of x, y, width, height into the images of `crop_and_resize`: x1, y1, x2, y2, (4,). size: height and width before."""
    (x, y, width, height), (rows, columns) = box, size
    corners = torch.tensor([int(x), int(y), int(x + width), int(y + height)], dtype=torch.float32)
    left, top = aspect_margins(columns, rows)
    sides = sorted((columns - 2 * left, rows - 2 * top))
    long_side = sides[1] if sides[0] == short_side else math.floor(sides[1] / sides[0] * short_side)
    return (corners - torch.tensor([left, top, left, top])) * (long_side / sides[1])


def normalise_clip(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalise a clip: uint8 (T, h, w, 3) → (3, T, h, w). mean and std are for 0..1."""
    colours = (images / 255 - images.new_tensor(mean, dtype=torch.float32)) / images.new_tensor(std, dtype=torch.float32)
    return colours.permute(3, 0, 1, 2)


def aspect_margins(width: int, height: int) -> tuple[int, int]:
    """Return the pixels to crop left and right, and at top and bottom, from an image that is too wide or too narrow."""
    if width / height > MAX_ASPECT:
        return int((width - MAX_ASPECT * height) // 2), 0
    if width / height < MIN_ASPECT:
        return 0, int((height - width / MIN_ASPECT) // 2)
    return 0, 0
