"""Masked-autoencoder pre-training (arXiv 2111.06377): reconstruct the patches that the encoder did not see."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from models.layers.patches import to_pixels
from models.mae.model import MAE
from training import draws
from training.objectives.base import Batch, Facts
from training.settings import Settings


class MAESettings(Settings):
    """The mask ratio and the kind of targets are the network's."""

    kind: Literal["mae"] = "mae"


class MaskedReconstruction(nn.Module):
    def __init__(self, model: MAE, facts: Facts | None = None) -> None:
        super().__init__()
        self.model = model
        self._facts = facts or Facts()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """pixels: normalised (B, 3, S, S); draw: (B,)."""
        return {"loss": self.model(batch["pixels"], self._noise(batch)).loss}

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """What the encoder saw, and the whole as predicted."""
        preprocess = self._facts.preprocess
        if preprocess is None:
            return {}
        with torch.no_grad():
            shown = self.model.pictures(batch["pixels"], self.model(batch["pixels"], self._noise(batch)))
        return {
            name: to_pixels(image, preprocess.mean, preprocess.std)
            for name, image in (("masked", shown.masked), ("predicted", shown.pasted))
        }

    def _noise(self, batch: Batch) -> Tensor:
        return draws.uniform(batch["draw"], (self.model.config.patches,), stream=0)


def build(settings: MAESettings, model: nn.Module, facts: Facts) -> MaskedReconstruction:
    if not isinstance(model, MAE):
        raise ValueError("objective mae needs a model of architecture mae")
    return MaskedReconstruction(model, facts)
