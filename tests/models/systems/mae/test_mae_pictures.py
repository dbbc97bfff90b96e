"""The picture of a reconstruction: what is removed, and what the decoder puts there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.layers.masked_encoder import MAEOutput, Masking
from models.layers.patches import patchify
from models.systems.mae.model import MAE
from tests.models.systems.mae.test_mae import SMALL


@pytest.mark.parametrize("normalised", [False, True])
def test_a_perfect_prediction_pastes_the_picture_back(normalised: bool) -> None:
    """Normalised predictions get the true patches' mean and deviation."""
    model = MAE(replace(SMALL, normalise_targets=normalised))
    images = torch.randn(2, 3, 16, 16)
    mask = Masking.from_noise(torch.rand(2, 16), SMALL.visible).mask
    pictures = model.visualise(images, MAEOutput(torch.zeros(()), model.targets(images), mask))
    torch.testing.assert_close(pictures.pasted, images)


def test_removed_patches_are_blank_and_visible_ones_untouched() -> None:
    model, images = MAE(SMALL), torch.randn(2, 3, 16, 16)
    answer = model(images, torch.rand(2, 16))
    pictures = model.visualise(images, answer)
    removed = answer.mask == 1
    blank, pasted, full = (patchify(picture, 4) for picture in (pictures.masked, pictures.pasted, images))
    assert not blank[removed].any()
    assert torch.equal(blank[~removed], full[~removed]) and torch.equal(pasted[~removed], full[~removed])
    assert not torch.equal(pasted[removed], full[removed])
