"""A forward pass of MCC on random input."""

from __future__ import annotations

from torch import Tensor

from models.registry import ForwardCall, InputMaker
from models.systems.mcc.model import MCC, MCCConfig

QUERIES = 2048
"""Points that one scene is asked about."""


def seen_scene(config: MCCConfig, make: InputMaker) -> tuple[Tensor, Tensor]:
    """An image and the points seen in it."""
    return make.normal(3, config.image_size, config.image_size), make.normal(config.seen_size, config.seen_size, 3)


def scene(model: MCC, config: MCCConfig, make: InputMaker) -> ForwardCall:
    pixels, seen = seen_scene(config, make)
    queries = make.normal(QUERIES, 3)
    return lambda: model(pixels, seen, queries)
