"""PSNR and SSIM of fillings, inside the hole of each image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_ROUNDING = 1 / 12 / 255**2
"""Mean squared error of rounding to bytes, which limits the PSNR to 58.9 dB."""
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def psnr(filled: Tensor, truth: Tensor, hole: Tensor) -> Tensor:
    """Return the PSNR (B,) in dB of uint8 images (B, H, W, 3) inside of holes (B, H, W)."""
    squared = (_to_float(filled) - _to_float(truth)).square().mean(dim=1)  # (B, H, W)
    return -10 * _inside(squared, hole).clamp(min=_ROUNDING).log10()


def ssim(filled: Tensor, truth: Tensor, hole: Tensor) -> Tensor:
    """Return structural similarity (IEEE TIP 13(4), 2004), Gaussian windows of 11 pixels, averaged over the hole: (B,)."""
    a, b = _to_float(filled), _to_float(truth)
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b = _blur(a * a) - mean_a.square(), _blur(b * b) - mean_b.square()
    covariance = _blur(a * b) - mean_a * mean_b
    similarity = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    similarity = similarity / ((mean_a.square() + mean_b.square() + _C1) * (var_a + var_b + _C2))
    return _inside(similarity.mean(dim=1), hole)


def _to_float(images: Tensor) -> Tensor:
    """Convert uint8 (B, H, W, 3) to float64 (B, 3, H, W) in 0..1, since variances are differences of near numbers."""
    return images.permute(0, 3, 1, 2).double() / 255


def _inside(values: Tensor, hole: Tensor) -> Tensor:
    """Average values (B, H, W) over the hole: (B,)."""
    return (values * hole).sum(dim=(1, 2)) / hole.sum(dim=(1, 2))


def _blur(images: Tensor) -> Tensor:
    places = torch.arange(_WINDOW, dtype=images.dtype) - (_WINDOW - 1) / 2
    weights = torch.exp(-places.square() / (2 * _SIGMA**2))
    weights = weights / weights.sum()
    channels, margin = images.shape[1], math.floor(_WINDOW / 2)
    padded = F.pad(images, (margin,) * 4, mode="reflect")
    rows = F.conv2d(padded, weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(rows, weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
