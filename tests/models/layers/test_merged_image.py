"""The picture of merged tokens beyond the recorded case (tests/golden/tome/visualization)."""

from __future__ import annotations

import random

import torch

from models.layers.token_merging import border_colours, paint_merged_tokens


def test_a_region_is_its_mean_colour_framed_by_one_pixel() -> None:
    image = torch.zeros(8, 16, 3, dtype=torch.uint8)
    image[:, :8], image[:, 8:] = 100, 200
    source = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float32)  # a class token and two patches of 8 pixels
    picture = paint_merged_tokens(image, source, 8)
    assert picture.dtype is torch.uint8
    for region, colour in ((picture[1:7, 1:7], 100), (picture[1:7, 9:15], 200)):
        assert (region.int() - colour).abs().max() <= 1  # truncated, not rounded, as published
    frame = (border_colours(3)[1] * 255).to(torch.uint8)
    assert (picture[0, :8] == frame).all()
    assert (picture[:, 7] == frame).all()


def test_merged_patches_have_no_border_between_them() -> None:
    image = torch.zeros(4, 8, 3, dtype=torch.uint8)
    image[:, 4:] = 100
    picture = paint_merged_tokens(image, torch.ones(1, 2), 4, special=0)
    assert (picture[1:3, 1:7].int() - 50).abs().max() <= 1


def test_border_colours_are_the_published_sequence() -> None:
    generator = random.Random(0)
    expected = [[generator.random(), generator.random(), generator.random()] for _ in range(3)]
    assert border_colours(3).tolist() == expected
