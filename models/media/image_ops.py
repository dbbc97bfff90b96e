"""Sizes and boxes of torchvision's Resize and CenterCrop, grey images of 16 bits, and TensorFlow 1's bicubic resizing. Imports no torch.

FLIP's images were prepared by the latter, which no other library has. It does not antialias; other bicubic resizing differs by several grey
levels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.arrays import Float32Array


def scaled_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return width and height for a shorter side of `short_side`; the other one is truncated."""
    if width <= height:
        return short_side, int(short_side * height / width)
    return int(short_side * width / height), short_side


def centre_box(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the middle `size` × `size` pixels."""
    left, top = round((width - size) / 2), round((height - size) / 2)
    return left, top, left + size, top + size


def grey16_to_rgb(grey: Image.Image) -> Image.Image:
    """Round an image of one of Pillow's integer modes to 8 bits, as RGB: 65535 and above becomes 255."""
    values = np.asarray(grey).astype(np.uint32).clip(0, 65535)
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")


CUBIC_COEFFICIENT = np.float32(-0.75)
WEIGHT_STEPS = 1024
"""Number of fractions of a pixel in TensorFlow's table of weights."""


def resize_square(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize as `resize_square_unrounded`, then round and clip to uint8 (size, size, C), for transfer: FLIP's own code does neither."""
    return resize_square_unrounded(image, size).round().clip(0, 255).astype(np.uint8, order="C")


def resize_square_unrounded(image: NDArray[np.uint8], size: int) -> Float32Array:
    """Resize the largest centred square: (H, W, C) of 0..255 → (size, size, C), not clipped to that range."""
    height, width, _ = image.shape
    side = min(height, width)
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    largest = image[top : top + side, left : left + side]
    rows = _resample(largest, size)  # (size, side, C)
    return _resample(rows.swapaxes(0, 1), size).swapaxes(0, 1)


def _resample(lines: NDArray[Any], size: int) -> Float32Array:
    """Resample the first axis: (length, …) → (size, …)."""
    taps, weights = sample_taps(len(lines), size)
    resampled: Float32Array = np.einsum("yk,yk...->y...", weights, lines[taps])
    return resampled


def sample_taps(length: int, size: int) -> tuple[NDArray[np.int64], Float32Array]:
    """Return the four of `length` pixels that contribute to each of `size` values, and their weights: (size, 4) both.

    Value i is at pixel i · length / size. Taps outside repeat the border.
    """
    position = np.arange(size, dtype=np.float32) * np.float32(length / size)
    first = np.floor(position)
    fraction = np.round((position - first) * WEIGHT_STEPS) / np.float32(WEIGHT_STEPS)
    offsets = np.arange(-1, 3)
    taps = (first.astype(np.int64)[:, None] + offsets).clip(0, length - 1)
    return taps, cubic_kernel(np.abs(fraction[:, None] - offsets.astype(np.float32)))


def cubic_kernel(distance: Float32Array) -> Float32Array:
    """Evaluate Keys's kernel at distances up to 2 from a pixel, of any shape."""
    a, d = CUBIC_COEFFICIENT, distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * a * d - 4 * a
    return np.where(d <= 1, near, far)
