"""A model that computes nothing: it takes a set time per batch and answers zeros, to measure everything around it.

With `steps` in its config a job takes several steps (`models.systems.null.steps`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.bundle_schema import Preprocess
from models.layers.forward import classification_arrays


@dataclass(frozen=True)
class NullConfig:
    milliseconds: float = 5.0
    """Per batch, or per step of a batch, whatever its size."""
    classes: int = 10
    tokens: int = 197
    """Reported as tokens in and out."""
    steps: tuple[int, ...] = ()
    """Numbers of steps that jobs take: the first pixel's first value chooses one (modulo their number). Empty: one forward pass."""
    width: int = 0
    """Width of the network that each step computes in addition to `milliseconds`; 0: none."""
    layers: int = 2
    """Number of its blocks."""

    def __post_init__(self) -> None:
        if any(steps < 1 for steps in self.steps):
            raise ValueError(f"steps: {list(self.steps)}; a job takes at least one")
        if self.width < 0 or self.layers < 0:
            raise ValueError(f"width {self.width}, layers {self.layers}: neither can be negative")


class Null(nn.Module):
    def __init__(self, config: NullConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, ...) → logits (B, classes)."""
        time.sleep(self.config.milliseconds / 1000)
        return torch.zeros(pixels.shape[0], self.config.classes)


def classify(model: nn.Module, arrays: Mapping[str, Tensor], options: Mapping[str, Any], preprocess: Preprocess) -> dict[str, Tensor]:
    assert isinstance(model, Null)
    return classification_arrays(model(arrays["pixels"]), model.config.tokens, model.config.tokens)
