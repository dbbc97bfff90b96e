"""Videos without loss, and what a published test makes of their frames: written here from the papers' rules, by nothing of ours."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tests.clips.bundles import MEAN, SHORT_SIDE, SIDE, STD, Recorded
from tests.video.clips import clip, every

STRIDE, RATE = 4, 30.0


@functools.cache
def frames(count: int, height: int = 48, width: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    """(count, height, width, 3): each frame is another one."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


@functools.cache
def video(count: int, fps: float = 10.0, height: int = 48, width: int = 64, seed: int = 0) -> bytes:
    images = frames(count, height, width, seed)
    return clip(every(count, fps), container="matroska", codec="ffv1", pixels="bgr0", size=(height, width), frames=list(images))


def view_numbers(total: int, fps: float, count: int, views: int, *, offset: bool) -> NDArray[np.int64]:
    """(views, count): truncated numbers of frames, evenly from the first to the last of a span."""
    length = STRIDE * count / RATE * fps
    left = max(total - length, 0.0)
    if not offset:
        starts = [left * view / views for view in range(views)]
    elif views == 1:
        starts = [math.floor(left / 2)]
    else:
        starts = [view * math.floor(left / (views - 1)) for view in range(views)]
    spans = np.array([np.linspace(start, start + length - 1, count) for start in starts], np.float32)
    return np.clip(spans, 0, total - 1).astype(np.int64)


def squares(images: NDArray[np.uint8], crops: int) -> list[Tensor]:
    """(T, H, W, 3) → `crops` of (3, T, S, S), normalised first, as published."""
    pixels = ((torch.from_numpy(images).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)
    short, (height, width) = SHORT_SIDE if crops == 1 else SIDE, images.shape[1:3]
    long = math.floor(max(height, width) / min(height, width) * short)
    size = (long, short) if height > width else (short, long)
    if min(height, width) != short:
        pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
    rows, columns = pixels.shape[2:]
    middle = math.ceil((rows - SIDE) / 2), math.ceil((columns - SIDE) / 2)
    if crops == 1:
        corners = [middle]
    elif height > width:
        corners = [(0, middle[1]), middle, (rows - SIDE, middle[1])]
    else:
        corners = [(middle[0], 0), middle, (middle[0], columns - SIDE)]
    return [pixels[:, :, top : top + SIDE, left : left + SIDE].transpose(0, 1) for top, left in corners]


def expected(
    recorded: Recorded, images: NDArray[np.uint8], fps: float, views: int | None = None, crops: int | None = None
) -> NDArray[np.float32]:
    """(classes,): the mean of the softmax over all views and crops."""
    model = recorded.model()
    numbers = view_numbers(len(images), fps, model.config.frames, views or recorded.views, offset=recorded.offset)
    seen = torch.stack([square for rows in numbers for square in squares(images[rows], crops or recorded.crops)])
    with torch.inference_mode():
        scores: NDArray[np.float32] = model(seen).logits.softmax(dim=-1).mean(dim=0).numpy()
    return scores
