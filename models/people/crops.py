"""Square crops of people as HMR2 (arXiv 2305.20091) and PHALP (arXiv 2112.04477) see them."""

from __future__ import annotations

import torch
from torch import Tensor

ASPECT = (192, 256)
"""Width to height of the part of a crop that the network looks at."""
SUBPIXELS = 32
"""OpenCV samples at multiples of 1/32 pixel, and the published crops were made with it."""
FINE = 1024
"""OpenCV first rounds to 1/1024 pixel."""
TRUNCATE = 4.0
"""Standard deviations at which scikit-image cuts a Gaussian off."""


def expand(boxes: Tensor, aspect: tuple[int, int] = ASPECT) -> Tensor:
    """Grow boxes (N, 4) of x1, y1, x2, y2 around their centres to an aspect of width to height; they never shrink."""
    centres, half = (boxes[:, :2] + boxes[:, 2:]) / 2, _grown(boxes[:, 2:] - boxes[:, :2], aspect) / 2
    return torch.cat([centres - half, centres + half], dim=1)


def squares(boxes: Tensor, aspect: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """Boxes (N, 4) → the centres (N, 2) and sides (N,) of the squares around their longer sides, once they have grown to an aspect.

    HMR2 grows boxes here, PHALP beforehand with `expand`: the same squares but for the last digit of a side.
    """
    sizes = boxes[:, 2:] - boxes[:, :2]
    return (boxes[:, :2] + boxes[:, 2:]) / 2, (sizes if aspect is None else _grown(sizes, aspect)).amax(dim=1)


def _grown(sizes: Tensor, aspect: tuple[int, int]) -> Tensor:
    """Widths and heights (N, 2). Multiplied before they are divided, as published: their last digits decide where pixels are sampled."""
    (width, height), (across, down) = sizes.unbind(1), aspect
    return torch.stack([torch.maximum(width, height * across / down), torch.maximum(height, width * down / across)], dim=1)


def crop(image: Tensor, centres: Tensor, sides: Tensor, size: int, *, blur: bool = False) -> Tensor:
    """Squares of an image, resampled: (H, W, C) of 0..255 → float32 (N, size, size, C), zeros outside the image.

    blur: first smooth what will shrink, for each crop as much as it needs; such crops are not rounded, the others are whole numbers.

    Bilinear sampling and Gaussian smoothing treat rows and columns alike and apart, so a crop is two matrix products.
    """
    height, width, channels = image.shape
    sigmas = smoothing(sides, size) if blur else torch.zeros_like(sides)
    columns, rows = _sources(centres, sides, size)
    across = _resampling(columns, sigmas, width)  # (N, size, W)
    down = _resampling(rows, sigmas, height)  # (N, size, H)
    strips = (down @ image.float().reshape(height, width * channels)).view(len(sides), size, width, channels)
    crops = torch.einsum("nsw,nrwc->nrsc", across, strips)
    return torch.where(sigmas.view(-1, 1, 1, 1) > 0, crops, (crops + 0.5).floor())


def smoothing(sides: Tensor, size: int) -> Tensor:
    """Standard deviation of the Gaussian, in pixels of the image, that keeps squares of `sides` from aliasing at `size`; 0 for none."""
    factor = sides / size / 2
    return torch.where(factor > 1.1, (factor - 1) / 2, 0.0)


def normalise(crops: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Tensor:
    """BGR crops (N, S, S, 3) of 0..255 → RGB (N, 3, S, S); mean and std are for 0..1."""
    rgb = crops.flip(-1).movedim(-1, 1)
    return (rgb - 255 * rgb.new_tensor(mean).view(3, 1, 1)) / (255 * rgb.new_tensor(std).view(3, 1, 1))


def _sources(centres: Tensor, sides: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Positions in the image at which OpenCV samples each column and each row of the crops, in pixels: (N, size) twice, to the last digit.

    It is told of a square by its centre and a corner in single precision. For columns it rounds beginning and offset, for rows their sum.
    """
    corners = (centres + sides.unsqueeze(1) / 2).float().double()  # (N, 2)
    centres = centres.float().double()
    beginnings, steps = 2 * centres - corners, (corners - centres) * 2 / size
    offsets = steps.unsqueeze(2) * torch.arange(size, device=sides.device)  # (N, 2, size)
    columns = (beginnings[:, :1] * FINE).round() + (offsets[:, 0] * FINE).round()
    rows = ((beginnings[:, 1:] + offsets[:, 1]) * FINE).round()
    return _to_subpixels(columns), _to_subpixels(rows)


def _to_subpixels(fine: Tensor) -> Tensor:
    return (fine * SUBPIXELS / FINE + 0.5).floor() / SUBPIXELS


def _resampling(source: Tensor, sigmas: Tensor, length: int) -> Tensor:
    """The matrices (N, size, length) that take a row of pixels to a row of a crop, `source` (N, size): Gaussian, then bilinear."""
    left = source.floor()
    fraction = source - left
    radius = (TRUNCATE * sigmas.double() + 0.5).floor()  # (N,)
    reach = int(radius.max()) if len(radius) else 0
    taps = torch.arange(-reach, reach + 1, device=source.device)
    kernel = torch.exp(-0.5 * (taps / sigmas.double().clamp(min=1e-6).unsqueeze(1)) ** 2) * (taps.abs() <= radius.unsqueeze(1))
    kernel = kernel / kernel.sum(dim=1, keepdim=True)  # (N, taps)
    matrix = torch.zeros(*source.shape, length, dtype=torch.float64, device=source.device)
    for pixel, weight in ((left, 1 - fraction), (left + 1, fraction)):
        inside = weight * ((pixel >= 0) & (pixel < length))
        index = (pixel.long().unsqueeze(2) + taps).clamp(0, length - 1)  # the image's edge goes on for ever
        matrix.scatter_add_(2, index, inside.unsqueeze(2) * kernel.unsqueeze(1))
    return matrix.float()
