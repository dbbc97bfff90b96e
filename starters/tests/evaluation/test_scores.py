from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from starters.evaluation.inpainting.scores import psnr, ssim


@pytest.fixture
def truth() -> Tensor:
    return torch.randint(40, 200, (2, 24, 24, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture
def hole() -> Tensor:
    mask = torch.zeros(2, 24, 24, dtype=torch.bool)
    mask[0, 2:8, 3:9], mask[1, 10:20, 5:21] = True, True
    return mask


def test_psnr_is_of_the_hole_alone(truth: Tensor, hole: Tensor) -> None:
    filled = torch.where(hole.unsqueeze(-1), truth + 10, truth)
    assert psnr(filled, truth, hole).tolist() == pytest.approx([20 * math.log10(255 / 10)] * 2, rel=1e-9)
    assert torch.equal(psnr(torch.where(hole.unsqueeze(-1), filled, 0), truth, hole), psnr(filled, truth, hole))


def test_perfect_filling_has_psnr_of_rounding_and_ssim_of_one(truth: Tensor, hole: Tensor) -> None:
    assert psnr(truth, truth, hole).tolist() == pytest.approx([10 * math.log10(12 * 255**2)] * 2, rel=1e-9)
    assert ssim(truth, truth, hole).tolist() == pytest.approx([1.0, 1.0], abs=1e-12)


def test_ssim_of_one_pixel_is_the_formula_over_its_window(truth: Tensor) -> None:
    filled = truth.flip(1)
    hole = torch.zeros(2, 24, 24, dtype=torch.bool)
    hole[:, 12, 9] = True
    places = np.arange(11) - 5
    window = np.exp(-(places[:, None] ** 2 + places[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    expected = []
    for a, b in zip(filled.numpy() / 255, truth.numpy() / 255, strict=True):
        channels = []
        for channel in range(3):
            x, y = a[7:18, 4:15, channel], b[7:18, 4:15, channel]
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy, c = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum(), (window * (x - mx) * (y - my)).sum()
            channels.append((2 * mx * my + 1e-4) * (2 * c + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
        expected.append(np.mean(channels))
    assert ssim(filled, truth, hole).tolist() == pytest.approx(expected, abs=1e-10)
