"""How FLIP was shown pictures: TensorFlow's bicubic resizing as it was in version 1, which no other library has.

It smooths nothing when a picture shrinks. A framework's own bicubic resizing is off by several grey levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHARPNESS = -0.75
"""The cubic's parameter."""
FRACTIONS = 1024
"""TensorFlow looks the four weights up in a table of so many fractions of a pixel."""


def prepare(picture: Tensor, size: int) -> Tensor:
    """The largest centred square, resized: (H, W, C) of 0..255 → float32 (size, size, C), not clipped to that range."""
    height, width, channels = picture.shape
    side = min(height, width)
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    square = picture[top : top + side, left : left + side].float()
    resampling = weights(side, size).to(picture.device)
    rows = (resampling @ square.reshape(side, side * channels)).view(size, side, channels)
    return torch.einsum("xw,ywc->yxc", resampling, rows)


def weights(length: int, size: int) -> Tensor:
    """(size, length), float32: of each pixel in each of `size` values. Value i lies at pixel i · length / size; taps outside repeat the
    border."""
    place = torch.arange(size, dtype=torch.float32) * (length / size)
    first = place.floor()
    fraction = ((place - first) * FRACTIONS).round() / FRACTIONS  # (size,)
    distance = (fraction.unsqueeze(1) - torch.arange(-1, 3)).abs()  # (size, 4)
    taps = (first.long().unsqueeze(1) + torch.arange(-1, 3)).clamp(0, length - 1)
    return torch.zeros(size, length).scatter_add_(1, taps, cubic(distance))


def cubic(distance: Tensor) -> Tensor:
    """Keys's kernel, by the distance from a pixel, up to 2."""
    a, d = SHARPNESS, distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * a * d - 4 * a
    return torch.where(d <= 1, near, far)
