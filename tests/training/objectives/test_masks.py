"""Masks that DiffMAE trains under: what each strategy hides, and how often each is drawn."""

from __future__ import annotations

import pytest
import torch
from scipy import ndimage
from torch import Tensor

from models.systems.diffmae.masks import PatchSplit
from training.objectives import masks
from training.objectives.masks import Strategy

MANY = torch.arange(600)
GRID = (1, 14, 14)


def hidden_grid(split: PatchSplit, grid: tuple[int, int, int]) -> Tensor:
    """bool (B, times, rows, columns). Checks that visible and masked patches are all patches, each once."""
    batch, patches = len(split.masked), torch.Size(grid).numel()
    counts = []
    for places, size in ((split.visible, split.visible_size), (split.masked, split.masked_size)):
        real = torch.ones_like(places) if size is None else size.squeeze(-1).long()
        counts.append(torch.zeros(batch, patches, dtype=torch.int64).scatter_add(1, places, real))
    assert torch.equal(counts[0] + counts[1], torch.ones_like(counts[0]))
    return counts[1].bool().view(batch, *grid)


def draw_values(strategy: Strategy, grid: tuple[int, int, int] = GRID, draw: Tensor = MANY) -> Tensor:
    return hidden_grid(masks.split(draw, grid, {strategy: 1.0}, 0.75), grid)


def test_random_masks_hide_equal_shares_and_patches_alike() -> None:
    mask = draw_values(Strategy.RANDOM)
    assert (mask.flatten(1).sum(dim=1) == 147).all()
    torch.testing.assert_close(mask.float().mean(dim=0), torch.full(GRID, 0.75), atol=0.09, rtol=0)
    assert masks.split(MANY, GRID, {Strategy.RANDOM: 1.0}, 0.75).masked_size is None


def rectangle(mask: Tensor) -> bool:
    """Return whether the hidden part of (rows, columns) is one full rectangle."""
    return bool(mask.sum() == mask.any(dim=1).sum() * mask.any(dim=0).sum())


def test_a_block_is_one_rectangle_over_a_quarter_to_a_half() -> None:
    mask = draw_values(Strategy.BLOCK)[:, 0]
    share = mask.float().mean(dim=(1, 2))
    assert share.min() >= 0.25 and share.max() <= 0.5
    assert all(rectangle(sample) for sample in mask)
    assert len({tuple(sample.flatten().tolist()) for sample in mask}) > 400
    assert mask.any(dim=0).all()


def test_boxes_are_one_to_four_rectangles_up_to_half_the_side() -> None:
    mask = draw_values(Strategy.BOXES)[:, 0]
    share = mask.float().mean(dim=(1, 2))
    assert share.min() >= 4 / 196 and share.max() <= 1.0
    alone = [sample for sample in mask if rectangle(sample)]
    assert 0.2 < len(alone) / len(mask) < 0.5  # a quarter have one box; a few hide the others
    sides = torch.tensor([[int(sample.any(dim=axis).sum()) for axis in (0, 1)] for sample in alone])
    assert sides.min() == 2 and (sides <= 7).all(dim=1).float().mean() > 0.9  # few are of boxes side by side
    assert mask.any(dim=0).all()


def test_strokes_are_up_to_three_connected_lines_of_varied_width() -> None:
    mask = draw_values(Strategy.STROKES)[:, 0]
    share = mask.float().mean(dim=(1, 2))
    assert (mask.flatten(1).sum(dim=1) >= 1).all() and 0.05 < share.mean() < 0.5
    pieces = [int(ndimage.label(sample.numpy(), structure=[[1, 1, 1]] * 3)[1]) for sample in mask]
    assert set(pieces) <= {1, 2, 3, 4} and pieces.count(1) > 200  # a stroke may leave the image and come back
    assert not all(rectangle(sample) for sample in mask)


def test_the_centre_is_half_of_the_rows_and_columns() -> None:
    mask = draw_values(Strategy.CENTRE, (1, 4, 8))
    expected = torch.zeros(4, 8, dtype=torch.bool)
    expected[1:3, 2:6] = True
    assert (mask[:, 0] == expected).all()


@pytest.mark.parametrize("strategy", [Strategy.BOXES, Strategy.STROKES, Strategy.BLOCK])
def test_clip_masks_repeat_over_time_except_random_ones(strategy: Strategy) -> None:
    mask = draw_values(strategy, (3, 6, 6), torch.arange(20))
    assert torch.equal(mask, mask[:, :1].expand_as(mask))
    mask = draw_values(Strategy.RANDOM, (3, 6, 6), torch.arange(20))
    assert not torch.equal(mask, mask[:, :1].expand_as(mask))


def test_strategies_are_drawn_by_their_odds() -> None:
    shares = {Strategy.RANDOM: 2.0, Strategy.CENTRE: 1.0, Strategy.BLOCK: 1.0, Strategy.BOXES: 0.0}
    mask = hidden_grid(masks.split(torch.arange(2000), GRID, shares, 0.75), GRID)[:, 0]
    counts = mask.flatten(1).sum(dim=1)
    centre = (mask == draw_values(Strategy.CENTRE)[0, 0]).flatten(1).all(dim=1)
    random = counts == 147
    assert random.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert centre.float().mean().item() == pytest.approx(0.25, abs=0.04)
    assert all(rectangle(sample) for sample in mask[~random])


def test_a_sample_has_its_mask_in_any_batch() -> None:
    shares = {Strategy.RANDOM: 1.0, Strategy.BOXES: 1.0, Strategy.STROKES: 1.0, Strategy.BLOCK: 1.0}
    joint = hidden_grid(masks.split(MANY[:40], GRID, shares, 0.75), GRID)
    for sample in range(40):
        alone = hidden_grid(masks.split(MANY[sample : sample + 1], GRID, shares, 0.75), GRID)
        assert torch.equal(alone[0], joint[sample])
