"""A model that computes nothing: it takes a set time per batch and answers zeros, to measure everything around it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class NullConfig:
    milliseconds: float = 5.0
    """Per batch, whatever its size."""
    classes: int = 10
    tokens: int = 197
    """Reported as tokens in and out."""


class Null(nn.Module):
    def __init__(self, config: NullConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, ...) → logits (B, classes)."""
        time.sleep(self.config.milliseconds / 1000)
        return torch.zeros(pixels.shape[0], self.config.classes)
