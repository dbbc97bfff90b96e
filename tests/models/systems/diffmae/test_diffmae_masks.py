"""Which patches are seen and which are made."""

from __future__ import annotations

import pytest
import torch

from models.systems.diffmae.masks import PatchSplit, centre_mask, patches_of_pixels


@pytest.mark.parametrize(("patches", "ratio", "visible"), [(196, 0.75, 49), (16, 0.9, 1), (1568, 0.9, 156)])
def test_the_visible_count_is_truncated(patches: int, ratio: float, visible: int) -> None:
    noise = torch.rand(2, patches)
    split = PatchSplit.from_noise(noise, ratio)
    assert split.visible.shape == (2, visible) and split.masked.shape == (2, patches - visible)
    assert torch.equal(torch.cat([split.visible, split.masked], dim=1).sort(dim=1).values, torch.arange(patches).expand(2, -1))
    assert bool((split.visible.diff() > 0).all()) and bool((split.masked.diff() > 0).all())
    assert noise.gather(1, split.visible).max() < noise.gather(1, split.masked).max()


def test_samples_of_different_masks_are_padded() -> None:
    mask = torch.tensor([[[True, False], [False, False]], [[False, True], [True, True]]])
    split = PatchSplit.from_mask(mask)
    assert split.masked.tolist() == [[0, 0, 0], [1, 2, 3]]
    assert split.visible.tolist() == [[1, 2, 3], [0, 0, 0]]
    assert split.masked_size is not None and split.masked_size.squeeze(-1).tolist() == [[1, 0, 0], [1, 1, 1]]
    assert split.visible_size is not None and split.visible_size.squeeze(-1).tolist() == [[1, 1, 1], [1, 0, 0]]


def test_equal_masks_need_no_padding() -> None:
    split = PatchSplit.from_mask(centre_mask(2, (4, 4)))
    assert split.masked.tolist() == [[5, 6, 9, 10]] * 2
    assert split.visible_size is None and split.masked_size is None


def test_what_is_outside_of_the_picture_is_neither_seen_nor_made() -> None:
    mask, inside = torch.tensor([[True, True, False, False]]), torch.tensor([[True, False, True, False]])
    split = PatchSplit.from_mask(mask, inside)
    assert (split.masked.tolist(), split.visible.tolist()) == ([[0]], [[2]])


@pytest.mark.parametrize(("row", "column"), [(0, 0), (7, 7), (8, 15), (31, 31)])
def test_one_pixel_hides_exactly_its_patch(row: int, column: int) -> None:
    pixels = torch.zeros(1, 32, 32, dtype=torch.bool)
    pixels[0, row, column] = True
    assert patches_of_pixels(pixels, 8)[0].nonzero().tolist() == [[row // 8, column // 8]]
