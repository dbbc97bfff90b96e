"""Sampling of frames and crops from a video, as in MAE-ST (arXiv 2205.09113) and PySlowFast.

A test averages the outputs of several views of a video, at times spread over it and at crops along its longer side. Training samples one
clip at random. Strides are counted at 30 frames per second, whatever the rate of the video.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FRAME_RATE = 30.0


def view_spans(
    total: int, fps: float, *, frames: int, stride: float, views: int, offset: bool = True, rate: float = FRAME_RATE
) -> list[tuple[float, float]]:
    """Return the first and last frame of each view of a video of `total` frames, as real numbers: the last may be after the end of a short
    video.

    offset: whole steps between the views, so that the first starts with the video and the last ends with it, nearly (MAE-ST, MViTv2);
    otherwise the remaining length is divided by the number of views (MViT, Rev-MViT).
    """
    length, left = _clip_length(total, fps, frames, stride, rate)
    if not offset:
        starts = [left * view / views for view in range(views)]
    elif views == 1:
        starts = [float(math.floor(left / 2))]
    else:
        starts = [float(view * math.floor(left / (views - 1))) for view in range(views)]
    return [(start, start + length - 1) for start in starts]


def random_span(total: int, fps: float, *, frames: int, stride: int, draw: float, rate: float = FRAME_RATE) -> tuple[float, float]:
    """Return the first and last frame of one clip for training. draw: uniform in [0, 1), from the caller."""
    length, left = _clip_length(total, fps, frames, stride, rate)
    return draw * left, draw * left + length - 1


def _clip_length(total: int, fps: float, frames: int, stride: float, rate: float) -> tuple[float, float]:
    """Return the length of a clip in frames of the video, and the number of remaining frames."""
    length = stride * frames / rate * fps
    return length, max(total - length, 0.0)


def frame_indices(span: tuple[float, float], total: int, frames: int) -> Tensor:
    """Return indices (frames,) int64, evenly over a span, truncated. A short video repeats its last frame."""
    return torch.linspace(*span, frames).clamp(0, total - 1).long()


def view_frames(total: int, fps: float, *, frames: int, stride: float, views: int, offset: bool = True, rate: float = FRAME_RATE) -> Tensor:
    """Return indices (views, frames) int64, by the rules of `view_spans`."""
    spans = view_spans(total, fps, frames=frames, stride=stride, views=views, offset=offset, rate=rate)
    return torch.stack([frame_indices(span, total, frames) for span in spans])


AxisResize = Callable[[Tensor, int, int, int, int], Tensor]
"""(images, axis counted from the end, its new length, first line, number of lines) → those lines."""


def crops(clip: Tensor, *, short_side: int, size: int, count: int, smooth: bool = False) -> Tensor:
    """Crop squares from a normalised clip (channels, T, H, W), resized to `short_side` → (count, channels, T, size, size).

    count: 1 for the centre; 3 for left or top, centre, right or bottom along the longer side. smooth: resize values from 0 to 255 as Pillow
    does, with antialiasing and rounding; otherwise bilinearly, without antialiasing.
    """
    if short_side < size:
        raise ValueError(f"size: squares of {size} px do not fit a short side of {short_side}")
    height, width = _resized_size(clip.shape[2], clip.shape[3], short_side)
    top, left = math.ceil((height - size) / 2), math.ceil((width - size) / 2)
    if count == 1:
        corners = [(top, left)]
    elif count == 3:
        corners = [(0, left), (top, left), (height - size, left)] if height > width else [(top, 0), (top, left), (top, width - size)]
    else:
        raise ValueError(f"count: {count} crops; it can be 1 (the centre) or 3 (along the longer side)")
    return torch.stack(
        [_crop_resized(clip, (height, width), corner, size, _resize_axis_smoothly if smooth else _resize_axis) for corner in corners]
    )


def _crop_resized(images: Tensor, to: tuple[int, int], corner: tuple[int, int], size: int, line: AxisResize) -> Tensor:
    """Return the square at a corner (top, left) of images resized as by `F.interpolate`: (…, H, W) → (…, size, size).

    Only the square is computed, the longer side first: a strip of 30,000 by 4 pixels would become 224 times as large as a whole.
    """
    axes = sorted(((-2, to[0], corner[0]), (-1, to[1], corner[1])), key=lambda axis: axis[1], reverse=True)
    for axis, resized, first in axes:
        images = line(images, axis, resized, first, size)
    return images


def _resize_axis(images: Tensor, axis: int, to: int, first: int, count: int) -> Tensor:
    """Return `count` lines, from the first one on, of images whose axis is resized bilinearly, without antialiasing: their shape with
    `count` along the axis."""
    length = images.shape[axis]
    if length == to:
        return images.narrow(axis, first, count)
    positions = ((torch.arange(first, first + count, device=images.device) + 0.5) * (length / to) - 0.5).clamp(min=0)
    before = positions.long().clamp(max=length - 1)
    weight = _broadcast_along(positions - before, axis)
    return torch.lerp(images.index_select(axis, before), images.index_select(axis, (before + 1).clamp(max=length - 1)), weight)


def _resize_axis_smoothly(images: Tensor, axis: int, to: int, first: int, count: int) -> Tensor:
    """Resize an axis as Pillow does: `count` lines, from the first one on, shaped as by `_resize_axis`. Weights are a triangle as wide as
    two lines of the result, or of the images if these are the wider ones; results are rounded to integers."""
    length = images.shape[axis]
    if length == to:
        return images.narrow(axis, first, count)
    scale = length / to
    reach = max(scale, 1.0)
    centres = (torch.arange(first, first + count, device=images.device, dtype=torch.float64) + 0.5) * scale
    starts = (centres - reach + 0.5).floor().clamp(min=0).long()
    summed, total = torch.zeros((), device=images.device), torch.zeros(count, dtype=torch.float64, device=images.device)
    for tap in range(2 * math.ceil(reach) + 1):
        indices = starts + tap
        weights = (1 - ((indices + 0.5 - centres) / reach).abs()).clamp(min=0) * (indices < length)
        summed = summed + images.index_select(axis, indices.clamp(max=length - 1)) * _broadcast_along(weights.float(), axis)
        total += weights
    return (summed / _broadcast_along(total.float(), axis)).round().clamp(0, 255)


def _broadcast_along(line: Tensor, axis: int) -> Tensor:
    """Reshape (n,) to multiply images along an axis counted from the end: (n, 1, …)."""
    return line.view([-1] + [1] * (-1 - axis))


def _resized_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return height and width of images whose short side is resized to a length; the longer side is rounded down."""
    long_side = math.floor(max(height, width) / min(height, width) * short_side)
    return (short_side, long_side) if height <= width else (long_side, short_side)


def resize_short_side(images: Tensor, short_side: int) -> Tensor:
    """Resize (T, channels, H, W) bilinearly, without antialiasing, as published; the longer side is rounded down."""
    height, width = images.shape[2:]
    if min(height, width) == short_side:
        return images
    return F.interpolate(images, size=_resized_size(height, width, short_side), mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class ResizedCropBox:
    top: int
    left: int
    height: int
    width: int


def random_box(
    height: int,
    width: int,
    generator: torch.Generator,
    *,
    area: tuple[float, float] = (0.5, 1.0),
    aspect: tuple[float, float] = (0.75, 4 / 3),
) -> ResizedCropBox:
    """Draw the box of a random resized crop: a share of the area, uniform; width to height, uniform in its logarithm.

    After ten boxes that do not fit, the largest central one of an allowed aspect. area: from 0.08 for fine-tuning.
    """
    for _ in range(10):
        fraction, shape, y, x = torch.rand(4, generator=generator).tolist()
        pixels = height * width * (area[0] + fraction * (area[1] - area[0]))
        ratio = math.exp(math.log(aspect[0]) + shape * (math.log(aspect[1]) - math.log(aspect[0])))
        box_height, box_width = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < box_height <= height and 0 < box_width <= width:
            return ResizedCropBox(int(y * (height - box_height + 1)), int(x * (width - box_width + 1)), box_height, box_width)
    box_height, box_width = min(height, round(width / aspect[0])), min(width, round(height * aspect[1]))
    return ResizedCropBox((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def resize_box(clip: Tensor, box: ResizedCropBox, size: int) -> Tensor:
    """Crop the same box from all frames and resize it bilinearly: (channels, T, H, W) → (channels, T, size, size)."""
    part = clip[:, :, box.top : box.top + box.height, box.left : box.left + box.width]
    resized = F.interpolate(part.transpose(0, 1), size=(size, size), mode="bilinear", align_corners=False)
    return resized.transpose(0, 1)


def average_views(logits: Tensor) -> Tensor:
    """Average the softmax of all views: (B, views, classes) → probabilities (B, classes)."""
    return logits.softmax(dim=-1).mean(dim=1)
