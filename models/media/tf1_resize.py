"""TensorFlow 1's bicubic resizing, with which FLIP's images were prepared and which no other library has.

It smooths nothing when an image shrinks. A framework's own bicubic resizing is off by several grey levels. No torch is needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CUBIC_COEFFICIENT = np.float32(-0.75)
"""The cubic's parameter."""
WEIGHT_STEPS = 1024
"""TensorFlow looks the four weights up in a table of so many fractions of a pixel."""

Floats = NDArray[np.float32]


def resize_square(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """`resize_square_unrounded`, rounded and clipped to 8 bits, as images travel: FLIP's own code does neither."""
    return resize_square_unrounded(image, size).round().clip(0, 255).astype(np.uint8, order="C")


def resize_square_unrounded(image: NDArray[np.uint8], size: int) -> Floats:
    """The largest centred square, resized: (H, W, C) of 0..255 → (size, size, C), not clipped to that range."""
    height, width, _ = image.shape
    side = min(height, width)
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    largest = image[top : top + side, left : left + side]
    rows = _resample(largest, size)  # (size, side, C)
    return _resample(rows.swapaxes(0, 1), size).swapaxes(0, 1)


def _resample(lines: NDArray[Any], size: int) -> Floats:
    """(length, …) → (size, …)."""
    taps, weights = sample_taps(len(lines), size)
    resampled: Floats = np.einsum("yk,yk...->y...", weights, lines[taps])
    return resampled


def sample_taps(length: int, size: int) -> tuple[NDArray[np.int64], Floats]:
    """The four of `length` pixels that make each of `size` values, and their weights: (size, 4) both.

    Value i lies at pixel i · length / size. Taps outside repeat the border.
    """
    place = np.arange(size, dtype=np.float32) * np.float32(length / size)
    first = np.floor(place)
    fraction = np.round((place - first) * WEIGHT_STEPS) / np.float32(WEIGHT_STEPS)
    offsets = np.arange(-1, 3)
    taps = (first.astype(np.int64)[:, None] + offsets).clip(0, length - 1)
    return taps, cubic_kernel(np.abs(fraction[:, None] - offsets.astype(np.float32)))


def cubic_kernel(distance: Floats) -> Floats:
    """Keys's kernel, by the distance from a pixel, up to 2."""
    a, d = CUBIC_COEFFICIENT, distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * a * d - 4 * a
    return np.where(d <= 1, near, far)
