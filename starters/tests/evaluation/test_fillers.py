from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from models.systems.diffmae.diffusion import TimestepSpacing
from models.systems.diffmae.model import DiffMAE, DiffMAEConfig
from starters.evaluation.inpainting.methods import DiffusionFiller, Filler, MeanColour, baselines


@pytest.fixture(scope="module")
def fillers() -> Sequence[Filler]:
    torch.manual_seed(0)
    config = DiffMAEConfig(
        (32, 32), patch_size=8, width=24, depth=2, heads=2, decoder_width=24, decoder_depth=2, decoder_heads=2, time_width=16
    )
    model = DiffMAE(config).eval()
    return (*baselines(), DiffusionFiller("one", model, "", 1), DiffusionFiller("four", model, "", 4, TimestepSpacing.LOG_SNR))


@pytest.fixture(scope="module")
def hole() -> Tensor:
    mask = torch.zeros(2, 32, 32, dtype=torch.bool)
    mask[0, 3:12, 9:21], mask[1, 20:31, 1:30] = True, True
    return mask


def test_filler_ignores_pixels_in_hole_and_keeps_those_outside(fillers: Sequence[Filler], hole: Tensor) -> None:
    pixels = torch.randint(0, 256, (2, 32, 32, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    other = torch.where(hole.unsqueeze(-1), 255 - pixels, pixels)
    for filler in fillers:
        filled = filler.fill(pixels, hole, 0)
        assert torch.equal(filled, filler.fill(other, hole, 0)), filler.name
        assert torch.equal(filled[~hole], pixels[~hole]), filler.name


def test_a_hole_in_one_colour_gets_that_colour_from_simple_ways(hole: Tensor) -> None:
    pixels = torch.tensor([30, 140, 250], dtype=torch.uint8).expand(2, 32, 32, 3).contiguous()
    for filler in baselines():
        assert (filler.fill(pixels, hole, 0).int() - pixels.int()).abs().max() <= 4, filler.name  # OpenCV's sums are rounded on the way


def test_the_mean_colour_is_that_of_the_rest() -> None:
    pixels = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    pixels[:, :2] = 100
    hole = torch.zeros(1, 4, 4, dtype=torch.bool)
    hole[:, 3] = True
    assert MeanColour().fill(pixels, hole, 0)[0, 3].unique().tolist() == [67]  # 8 of 12 pixels are 100


def test_draws_of_an_image_depend_on_its_number_not_on_the_batch(fillers: Sequence[Filler], hole: Tensor) -> None:
    pixels = torch.randint(0, 256, (2, 32, 32, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    batch = fillers[-1].fill(pixels, hole, 7)
    alone = fillers[-1].fill(pixels[1:], hole[1:], 8)
    assert (batch[1].int() - alone[0].int()).abs().max() <= 1  # rounding: the batch was padded
    assert (fillers[-1].fill(pixels[1:], hole[1:], 9)[0].int() - alone[0].int()).abs().max() > 8
