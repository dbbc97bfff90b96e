"""Masked reconstruction, patch by patch."""

from __future__ import annotations

import pytest
import torch

from models.bundle_schema import Preprocess
from models.systems.mae.model import MAE
from tests.training.objectives.cases import MAE_CONFIG, assert_same_gradients, draw, gradients, normal
from training import random_draws
from training.objectives.mae import MAEObjective
from training.objectives.protocols import ObjectiveContext

PREPROCESS = Preprocess(image_size=16, short_side=16, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))


@pytest.fixture
def model() -> MAE:
    torch.manual_seed(0)
    return MAE(MAE_CONFIG)


def test_only_the_patches_that_were_hidden_count(model: MAE) -> None:
    pixels, noise = normal(3, 16, 16), random_draws.uniform(draw(), (16,), "mask")
    answer = model(pixels, noise)
    errors = []
    for sample in range(4):
        for patch in noise[sample].argsort()[4:].tolist():  # a quarter of 16 patches is visible
            row, column = divmod(patch, 4)
            block = pixels[sample, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].permute(1, 2, 0).flatten()
            expected = (block - block.mean()) / (block.var() + 1e-6).sqrt()
            errors.append((answer.patches[sample, patch] - expected).square().mean())
    wanted_loss = torch.stack(errors).mean()
    objective = MAEObjective(model)
    loss = objective({"pixels": pixels, "draw": draw()})["loss"]
    assert loss.item() == pytest.approx(wanted_loss.item(), rel=1e-5)
    assert_same_gradients(gradients(loss, objective), gradients(wanted_loss, objective))


def test_samples_hide_other_patches_in_every_epoch(model: MAE) -> None:
    noise = MAEObjective(model).noise(torch.arange(100))
    hidden = {tuple(sorted(row.argsort()[4:].tolist())) for row in noise}
    assert len(hidden) > 95


def test_pictures_show_what_was_seen_and_what_was_made_of_it(model: MAE) -> None:
    batch = {"pixels": normal(3, 16, 16), "draw": draw()}
    visible = MAEObjective(model, ObjectiveContext(preprocess=PREPROCESS)).pictures(batch)
    assert set(visible) == {"masked", "predicted"}
    assert all(image.shape == (4, 16, 16, 3) and image.dtype == torch.uint8 for image in visible.values())
    grey = torch.tensor(PREPROCESS.mean).mul(255).round().to(torch.uint8)
    hidden = (visible["masked"] == grey).all(dim=-1)
    assert hidden.float().mean() >= 0.75
    seen = ~hidden
    assert torch.equal(visible["masked"][seen], visible["predicted"][seen])
    assert MAEObjective(model).pictures(batch) == {}
