"""Halves of pictures that are hidden, the simple ways to give them back, and what is told of all ways."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from training.evaluation.filling import halves
from training.evaluation.filling.fillers import Exemplars
from training.evaluation.filling.halves import Half
from training.evaluation.filling.restoring import INTACT, MIRRORED, RESTORED, compared


@pytest.fixture
def wide() -> halves.Squares:
    """One picture of 32 × 16, whose left half is red and whose right half is blue."""
    image = Image.new("RGB", (32, 16), "red")
    image.paste("blue", (16, 0, 32, 16))
    return halves.squares([image], 32)


def test_a_picture_lies_in_the_middle_of_a_white_square(wide: halves.Squares) -> None:
    assert wide.boxes == ((0, 8, 32, 24),)
    assert (wide.pixels[0, :8] == 255).all() and (wide.pixels[0, 24:] == 255).all()
    [picture] = wide.cut(wide.pixels)
    assert picture.size == (32, 16) and picture.getpixel((2, 2)) == (255, 0, 0) and picture.getpixel((30, 2)) == (0, 0, 255)


def test_the_four_halves_are_hidden_once_each() -> None:
    masks = torch.stack([halves.hidden(half, 8) for half in Half])
    assert (masks.sum(dim=(1, 2)) == 32).all() and (masks.sum(dim=0) == 2).all()
    assert masks[0, 0, 0] and masks[1, 0, -1] and masks[2, 0, 0] and masks[3, -1, 0]


def test_simple_ways_see_nothing_of_the_hidden_half(wide: halves.Squares) -> None:
    for half in Half:
        mask = halves.hidden(half, 32)
        other = halves.Squares(torch.where(mask.unsqueeze(-1), 77, wide.pixels).to(torch.uint8), wide.boxes)
        for way in (
            halves.blank,
            lambda pixels, half: halves.blank(pixels, half, mean=True),
            halves.mirrored,
            lambda pixels, half: Exemplars("PatchMatch").fill(pixels, halves.hidden(half, 32).expand(len(pixels), -1, -1), 3),
        ):
            made = way(wide.pixels, half)
            assert torch.equal(made, way(other.pixels, half))
            assert torch.equal(made[:, ~mask], wide.pixels[:, ~mask])
        assert np.array_equal(*(np.array(halves.visible(found, half)[0]) for found in (wide, other)))


def test_a_mirror_image_repeats_the_visible_half(wide: halves.Squares) -> None:
    [picture] = wide.cut(halves.mirrored(wide.pixels, Half.LEFT))
    assert {picture.getpixel((x, 4)) for x in (1, 10, 20, 30)} == {(0, 0, 255)}
    assert torch.equal(halves.mirrored(wide.pixels, Half.UPPER), wide.pixels)


def test_the_visible_half_is_cut_out(wide: halves.Squares) -> None:
    sizes = {half: halves.visible(wide, half)[0].size for half in Half}
    assert sizes == {Half.LEFT: (16, 16), Half.RIGHT: (16, 16), Half.UPPER: (32, 8), Half.LOWER: (32, 8)}
    assert halves.visible(wide, Half.LEFT)[0].getpixel((0, 0)) == (0, 0, 255)


def test_errors_are_over_labels_and_differences_are_paired() -> None:
    restored = np.array([[1.0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    mirrored = restored - np.array([[0.5], [0.5], [0.5], [0.5]])
    labels = np.array([0, 0, 1, 2])
    report = compared({RESTORED: restored, MIRRORED: mirrored, INTACT: np.ones((4, 1))}, labels)
    means = np.array([0.75, 0.0, 1.0])
    assert report[RESTORED]["value"]["value"] == pytest.approx(means.mean(), abs=1e-4)
    assert report[RESTORED]["value"]["standard_error"] == pytest.approx(means.std(ddof=1) / 3**0.5, abs=1e-4)
    assert report[RESTORED]["value"]["n"] == 3
    gain = report[MIRRORED]["restored_minus_this"]
    assert gain["value"] == pytest.approx(0.5) and gain["standard_error"] == pytest.approx(0.0)
