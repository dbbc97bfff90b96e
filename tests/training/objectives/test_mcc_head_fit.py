"""Occupancy and colours that are fitted to data before the first step."""

from __future__ import annotations

import torch
from torch import Tensor

from models.systems.mcc.init_attention import init_nearest_attention
from models.systems.mcc.model import MCC
from tests.models.systems.mcc.test_mcc_nearest import CONFIG
from training.objectives.mcc import MCCObjective, MCCSettings, fit_mcc_head


def walls(first: int, count: int) -> dict[str, Tensor]:
    """Tilted walls of one colour each: what is occupied lies on them."""
    dice = torch.Generator().manual_seed(first)
    axis = torch.linspace(-2, 2, 32)
    across, down = axis.expand(count, 32, 32), axis.unsqueeze(1).expand(count, 32, 32)
    slope = torch.empty(count, 2, 1, 1).uniform_(-0.5, 0.5, generator=dice)
    points = torch.stack([across, down, slope[:, 0] * across + slope[:, 1] * down], dim=-1)
    colour = torch.rand(count, 3, generator=dice)
    return {
        "pixels": colour[:, :, None, None].expand(-1, -1, 48, 48),
        "points": points,
        "valid": torch.ones(count, 32, 32, dtype=torch.bool),
        "surface": points.flatten(1, 2),
        "colours": colour.unsqueeze(1).expand(-1, 1024, -1),
        "draw": torch.arange(first, first + count),
    }


def objective() -> MCCObjective:
    torch.manual_seed(0)
    model = MCC(CONFIG)
    init_nearest_attention(model)
    settings = MCCSettings(queries=200, near=0.5, spread=0.6, size=2.0, threshold=0.2, scale=0.0, shift=0.0, degrees=0)
    return MCCObjective(model, settings).eval()


def fit() -> MCCObjective:
    made = objective()
    fit_mcc_head(made, batches())
    return made


def batches() -> list[dict[str, Tensor]]:
    return [walls(first, 16) for first in range(0, 96, 16)]


@torch.no_grad()
def loss(selected: MCCObjective, on: list[dict[str, Tensor]], name: str) -> float:
    return sum(float(selected(batch)[name]) for batch in on) / len(on)


def test_fitted_answers_hold_for_other_scenes() -> None:
    others, made = [walls(1000, 32)], fit()
    share = made.decode_training_queries(others[0])[1].occupied.mean()
    prior = float(-(share * share.log() + (1 - share) * (1 - share).log()))
    assert loss(made, others, "loss_occupancy") < 0.6 * prior
    assert loss(made, others, "loss_colour") < 0.1 * loss(objective(), others, "loss_colour")
