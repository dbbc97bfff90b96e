"""A last layer that is fitted to data before the first step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.systems.diffmae.init_attention import init_neighbour_attention
from models.systems.diffmae.model import DiffMAE, DiffMAEConfig
from training.objectives.diffmae import DiffMAEObjective, DiffMAESettings, fit_diffmae_head
from training.objectives.masks import Strategy

CONFIG = DiffMAEConfig(
    image_size=(32, 32), patch_size=4, width=64, depth=1, heads=2, decoder_width=64, decoder_depth=1, decoder_heads=2, time_width=8
)


def slopes(first: int, count: int) -> dict[str, Tensor]:
    """Images whose colours rise to one side: what is hidden lies between what is next to it."""
    dice = torch.Generator().manual_seed(first)
    start, rise = (torch.randn(count, 3, 1, 1, generator=dice) for _ in range(2))
    across = torch.linspace(-1, 1, 32).expand(32, 32)
    return {"pixels": start + rise * across, "draw": torch.arange(first, first + count)}


def objective() -> DiffMAEObjective:
    torch.manual_seed(0)
    model = DiffMAE(CONFIG)
    init_neighbour_attention(model)
    return DiffMAEObjective(model, DiffMAESettings(masks={Strategy.BOXES: 0.5, Strategy.RANDOM: 0.5}, mask_ratio=0.5)).eval()


def batches() -> list[dict[str, Tensor]]:
    return [slopes(first, 32) for first in range(0, 256, 32)]


@torch.no_grad()
def squared_error(selected: DiffMAEObjective, on: list[dict[str, Tensor]]) -> float:
    """Return the squared error of a masked patch."""
    return sum(float(selected(batch)["loss"]) for batch in on) / len(on)


def test_a_fitted_last_layer_predicts_patches_of_other_images() -> None:
    fitted = objective()
    fit_diffmae_head(fitted, batches())
    others = [slopes(1000, 32)]
    assert squared_error(fitted, others) < 0.5 * squared_error(objective(), others)


@pytest.mark.parametrize("scale", [0.97, 1.03])
def test_no_other_scale_of_a_fitted_last_layer_is_better(scale: float) -> None:
    fitted = objective()
    fit_diffmae_head(fitted, batches())
    best = squared_error(fitted, batches())
    with torch.no_grad():
        for parameter in fitted.model.decoder_pred.parameters():
            parameter.mul_(scale)
    assert squared_error(fitted, batches()) > best
