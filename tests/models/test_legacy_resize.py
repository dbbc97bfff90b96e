"""FLIP's pictures, against PyTorch's bicubic sampling at the same places. No recorded case shows them; the source is the published code's
description, and the kernel is that of `grid_sample`, which has the same parameter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.legacy_resize import prepare, weights


def picture(height: int, width: int) -> Tensor:
    return torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def sampled(square: Tensor, size: int) -> Tensor:
    """Value i at pixel i · side / size, the border repeated."""
    side = len(square)
    place = torch.arange(size, dtype=torch.float64) * side / size
    normalised = (2 * place + 1) / side - 1
    grid = torch.stack(torch.meshgrid(normalised, normalised, indexing="ij")[::-1], dim=-1)
    channels_first = square.double().permute(2, 0, 1)[None]
    return F.grid_sample(channels_first, grid[None], mode="bicubic", padding_mode="border", align_corners=False)[0].permute(1, 2, 0)


@pytest.mark.parametrize(("side", "size"), [(16, 16), (20, 12), (9, 32), (37, 10)])
def test_values_are_sampled_at_corners_of_pixels(side: int, size: int) -> None:
    """To 0.3 grey levels, for TensorFlow rounds places to 1/1024 pixel."""
    square = picture(side, side)
    torch.testing.assert_close(prepare(square, size).double(), sampled(square, size), atol=0.3, rtol=0)


def test_where_places_are_whole_the_pixels_are_those_of_the_picture() -> None:
    square = picture(24, 24)
    assert torch.equal(prepare(square, 8), square[::3, ::3].float())


def test_places_are_rounded_to_the_1024th_of_a_pixel() -> None:
    """Between the second and the third of four pixels, in steps of half that and of that."""
    assert len(weights(4, 8192)[2048:4096].unique(dim=0)) == 1025
    assert len(weights(4, 4096)[1024:2048].unique(dim=0)) == 1024


@pytest.mark.parametrize(("height", "width", "top", "left"), [(8, 13, 0, 3), (12, 8, 2, 0), (9, 8, 1, 0)])
def test_the_square_is_the_centre_and_half_pixels_go_to_the_end(height: int, width: int, top: int, left: int) -> None:
    whole = picture(height, width)
    assert torch.equal(prepare(whole, 8), whole[top : top + 8, left : left + 8].float())


def test_what_shoots_over_is_not_clipped() -> None:
    edge = torch.zeros(8, 8, 1, dtype=torch.uint8)
    edge[:, 4:] = 255
    values = prepare(edge, 24)
    assert float(values.min()) < 0 and float(values.max()) > 255
