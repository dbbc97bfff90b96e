"""Which frames and which part of them MViT sees: views of a video for Kinetics-400, clips around the people in a track for LART."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FRAME_RATE = 30
"""Frames per second, in which strides are counted."""

STEP = 6
"""Frames of a track that share one feature: five per second."""

WIDEST, NARROWEST = 1.2, 0.8
"""Width to height of the pictures around a track; more extreme ones are cropped."""


def view_frames(total: int, fps: float, *, frames: int, stride: int, views: int, offset: bool = True) -> Tensor:
    """Frame numbers of a video's views, (views, frames), int64.

    total, fps: of the video. stride: between frames at 30 per second. offset: the first view starts with the video and the last ends with
    it (MViTv2); otherwise starts divide what is left over by the number of views (MViT, Rev-MViT).
    """
    length = stride * frames / FRAME_RATE * fps
    left = max(total - length, 0.0)
    if not offset:
        starts = [left * view / views for view in range(views)]
    elif views == 1:
        starts = [float(math.floor(left / 2))]
    else:
        starts = [float(view * math.floor(left / (views - 1))) for view in range(views)]
    return torch.stack([torch.linspace(start, start + length - 1, frames).clamp(0, total - 1).long() for start in starts])


def crops(clip: Tensor, *, short_side: int, size: int, count: int) -> Tensor:
    """A normalised clip (channels, T, H, W) → squares (count, channels, T, size, size) of it, its short side taken to `short_side`.

    count: 1 for the centre; 3 for both ends of the long side and the centre.
    """
    resized = _resize(clip.transpose(0, 1), short_side)  # (T, channels, h, w)
    height, width = resized.shape[2:]
    centre = math.ceil((height - size) / 2), math.ceil((width - size) / 2)
    if count == 1:
        corners = [centre]
    elif count == 3:
        corners = (
            [(0, centre[1]), centre, (height - size, centre[1])] if height > width else [(centre[0], 0), centre, (centre[0], width - size)]
        )
    else:
        raise ValueError(f"count: {count} crops; it can be 1 (the centre) or 3 (along the long side)")
    return torch.stack([resized[:, :, top : top + size, left : left + size] for top, left in corners]).transpose(1, 2)


@dataclass(frozen=True)
class Window:
    """Frames of a track that share the feature of a clip around the middle one."""

    first: int
    end: int
    """Behind the last."""

    @property
    def middle(self) -> int:
        return (self.first + self.end) // 2


def windows(length: int) -> list[Window]:
    """Of a track of so many frames."""
    return [Window(first, min(first + STEP, length)) for first in range(0, length, STEP)]


def clip_frames(middle: int, length: int, *, frames: int, stride: int) -> Tensor:
    """The frames of a track, (frames,) int64, that make the clip around its frame `middle`; beyond its ends the last one repeats."""
    span = frames * stride
    around = torch.linspace(0, span, frames).long()
    return (middle - span // 2 + around).clamp(0, length - 1)


def person_clip(
    pictures: Tensor, box: Sequence[float], *, short_side: int, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """What a box head wants of one person: a clip (3, T, h, w) and a box (4,), x1, y1, x2, y2 in its pixels.

    pictures: uint8 (T, H, W, 3), RGB; box: x, y, width, height in them. Rounded to whole levels after resizing, as the published code's
    pictures are; its fixed-point arithmetic may differ by one level.
    """
    x, y, width, height = box
    corners = torch.tensor([int(x), int(y), int(x + width), int(y + height)], dtype=torch.float32)
    left, top = margins(pictures.shape[2], pictures.shape[1])
    pictures = pictures[:, top : pictures.shape[1] - top, left : pictures.shape[2] - left]
    corners = corners - torch.tensor([left, top, left, top])
    long_side = max(pictures.shape[1:3])
    resized = _resize(pictures.permute(0, 3, 1, 2).float(), short_side).round().clamp(0, 255)  # (T, 3, h, w)
    factor = max(resized.shape[2:]) / long_side
    colours = (resized / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    return colours.transpose(0, 1), corners * factor


def margins(width: int, height: int) -> tuple[int, int]:
    """What to cut off on the left and right, and on top and bottom, of a picture that is too wide or too narrow."""
    if width / height > WIDEST:
        return int((width - WIDEST * height) // 2), 0
    if width / height < NARROWEST:
        return 0, int((height - width / NARROWEST) // 2)
    return 0, 0


def _resize(pictures: Tensor, short_side: int) -> Tensor:
    """(T, channels, H, W) bilinearly to a short side, without antialiasing; the long side is rounded down."""
    height, width = pictures.shape[2:]
    if min(height, width) == short_side:
        return pictures
    long_side = math.floor(max(height, width) / min(height, width) * short_side)
    size = (short_side, long_side) if height <= width else (long_side, short_side)
    return F.interpolate(pictures, size=size, mode="bilinear", align_corners=False)
