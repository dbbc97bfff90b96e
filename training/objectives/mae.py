"""Masked-autoencoder pre-training (arXiv 2111.06377): reconstruct the patches that the encoder did not see."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.mae.model import MAE


class MaskedReconstruction(nn.Module):
    def __init__(self, model: MAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, targets: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S) → the loss; labels are not looked at. The masks come from torch's global generator."""
        noise = torch.rand(pixels.shape[0], self.model.config.patches, device=pixels.device)
        loss: Tensor = self.model(pixels, noise).loss
        return loss
