"""A forward pass of MCC on random input."""

from __future__ import annotations

from torch import Tensor

from models.registry import ForwardCall, InputMaker
from models.systems.mcc.model import MCC, MCCConfig

QUERIES = 2048
"""Number of query points per scene."""


def random_scene_inputs(config: MCCConfig, make: InputMaker) -> tuple[Tensor, Tensor]:
    """Make a random image (B, 3, S, S) and seen points (B, n, n, 3)."""
    return make.normal(3, config.image_size, config.image_size), make.normal(config.seen_size, config.seen_size, 3)


def scene_queries(model: MCC, config: MCCConfig, make: InputMaker) -> ForwardCall:
    pixels, seen = random_scene_inputs(config, make)
    queries = make.normal(QUERIES, 3)
    return lambda: model(pixels, seen, queries)
