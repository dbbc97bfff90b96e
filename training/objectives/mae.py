"""Masked-autoencoder pre-training: reconstruct the patches that the encoder did not see. Of images (MAE, arXiv 2111.06377), of clips
(MAE-ST, 2205.09113) and of spectrograms (Audio-MAE, 2207.06405)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from models.layers.masked_autoencoder import Reconstruction
from models.mae.model import MAE
from models.mae_st.pretraining import VideoMAEPretraining
from models.mavil.audio_mae import AudioMAE
from training import draws
from training.objectives.settings import Settings, expect, need
from training.reductions import term_of_mean


class MAESettings(Settings):
    """Mask ratio and targets are the model's."""

    kind: Literal["mae"] = "mae"

    def build(self, model: nn.Module) -> MaskedReconstruction:
        return MaskedReconstruction(expect(self.kind, model, MAE, VideoMAEPretraining, AudioMAE))


class MaskedReconstruction(nn.Module):
    """Batch: normalised `images` (B, channels, S, S), `clips` (B, channels, T, S, S) or `audio` (B, 1, times, mel bins)."""

    def __init__(self, model: MAE | VideoMAEPretraining | AudioMAE) -> None:
        super().__init__()
        self.model = model
        self.input = "images" if isinstance(model, MAE) else "audio" if isinstance(model, AudioMAE) else "clips"

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.losses(need(batch, self.input), self.noise(batch["draw"]))

    def noise(self, draw: Tensor) -> Tensor:
        """(B, L), uniform: of each sample the patches with the lowest are visible."""
        return draws.uniform(draw, (self.model.config.patches,), "mask")

    def losses(self, pixels: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """The mean over removed patches: the same number in every sample, but ranks may have different numbers of samples."""
        answer: Reconstruction = self.model(pixels, noise)
        return {"loss": term_of_mean(answer.loss, answer.mask.sum())}

    @torch.no_grad()
    def pictures(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Input without the removed patches, and with predictions in their places: (B, channels, S, S) each, normalised as the input is.
        Of images alone."""
        if not isinstance(self.model, MAE):
            return {}
        pictures = self.model.pictures(batch["images"], self.model(batch["images"], self.noise(batch["draw"])))
        return {"masked": pictures.masked, "pasted": pictures.pasted}
