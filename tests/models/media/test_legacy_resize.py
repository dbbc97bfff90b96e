"""FLIP's pictures, which no recorded case shows: against values of TensorFlow, and PyTorch's bicubic sampling at the same places. The
kernel is that of `grid_sample`, which has the same parameter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.bundle_schema import Preprocess
from models.checkpoints import families
from models.media.image_ops import resize_square, resize_square_unrounded, sample_taps
from server.media.images import to_model_size

BY_TENSORFLOW = [
    [0.0000, 162.3107, 67.0374, 179.2226, 161.4887],
    [196.7564, 95.9060, 240.4431, 45.7300, 136.7502],
    [88.1401, 125.6608, 103.1785, 174.4644, 138.7495],
    [41.9654, 157.9441, 110.4590, 129.6698, 57.4620],
    [183.7527, 134.8399, 225.0295, 62.0904, 175.0323],
]
"""Version 2.21's `compat.v1.image.resize_bicubic`, its options at their defaults, of the picture below."""


def picture(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)


def sample(square: NDArray[np.uint8], size: int) -> Tensor:
    """Value i at pixel i · side / size, the border repeated."""
    side = len(square)
    place = torch.arange(size, dtype=torch.float64) * side / size
    normalised = (2 * place + 1) / side - 1
    grid = torch.stack(torch.meshgrid(normalised, normalised, indexing="ij")[::-1], dim=-1)
    channels_first = torch.from_numpy(square).double().permute(2, 0, 1)[None]
    return F.grid_sample(channels_first, grid[None], mode="bicubic", padding_mode="border", align_corners=False)[0].permute(1, 2, 0)


def test_values_are_those_of_tensorflow() -> None:
    counted = (np.arange(49) * 101 % 256).astype(np.uint8).reshape(7, 7, 1)
    np.testing.assert_allclose(resize_square_unrounded(counted, 5)[:, :, 0], BY_TENSORFLOW, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("side", "size"), [(16, 16), (20, 12), (9, 32), (37, 10)])
def test_values_are_sampled_at_corners_of_pixels(side: int, size: int) -> None:
    """The tolerance is 0.3 grey levels, since TensorFlow rounds positions to 1/1024 pixel."""
    full = picture(side, side)
    values = resize_square_unrounded(full, size)
    assert values.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(values).double(), sample(full, size), atol=0.3, rtol=0)


def test_whole_positions_keep_pixels_of_the_image() -> None:
    full = picture(24, 24)
    assert (resize_square_unrounded(full, 8) == full[::3, ::3]).all()


def test_places_are_rounded_to_the_1024th_of_a_pixel() -> None:
    """Positions between the second and the third of four pixels, in steps of 1/1024 and of half that."""
    assert len(np.unique(sample_taps(4, 8192)[1][2048:4096], axis=0)) == 1025
    assert len(np.unique(sample_taps(4, 4096)[1][1024:2048], axis=0)) == 1024


@pytest.mark.parametrize(("height", "width", "top", "left"), [(8, 13, 0, 3), (12, 8, 2, 0), (9, 8, 1, 0)])
def test_the_square_is_the_centre_and_half_pixels_go_to_the_end(height: int, width: int, top: int, left: int) -> None:
    full = picture(height, width)
    assert (resize_square_unrounded(full, 8) == full[top : top + 8, left : left + 8]).all()


def test_what_shoots_over_is_clipped_only_where_pictures_travel() -> None:
    edge = np.zeros((8, 8, 1), np.uint8)
    edge[:, 4:] = 255
    values = resize_square_unrounded(edge, 24)
    assert values.min() < 0 and values.max() > 255
    travelling = resize_square(edge, 24)
    assert travelling.dtype == np.uint8
    assert (np.abs(travelling - values.clip(0, 255)) <= 0.5).all()


def test_the_service_prepares_pictures_for_flip_so() -> None:
    full = picture(31, 44)
    preprocess = families()["flip"].preprocess(16)
    assert (to_model_size(Image.fromarray(full), preprocess, 10**6) == resize_square(full, 16)).all()


def test_it_goes_with_no_other_crop() -> None:
    with pytest.raises(ValueError, match="tf1-bicubic needs fit crop, short_side like image_size"):
        Preprocess(image_size=16, short_side=20, interpolation="tf1-bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
