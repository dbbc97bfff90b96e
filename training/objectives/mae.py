"""Masked-autoencoder pre-training: reconstruct the patches that the encoder did not see. Of images (MAE, arXiv 2111.06377), of clips
(MAE-ST, 2205.09113) and of spectrograms (Audio-MAE, 2207.06405)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from models.layers.masked_encoder import MAEOutput
from models.layers.patches import to_pixels
from models.systems.mae.model import MAE
from models.systems.mae_st.pretraining import VideoMAEPretraining
from models.systems.mavil.audio_mae import AudioMAE
from training import random_draws
from training.collectives import term_of_mean
from training.objectives.checks import require_model, require_tensor
from training.objectives.protocols import Batch, ObjectiveContext, ObjectiveSettings


class MAESettings(ObjectiveSettings):
    """The mask ratio and the kind of targets are the network's."""

    kind: Literal["mae"] = "mae"

    def build(self, model: nn.Module, context: ObjectiveContext) -> MAEObjective:
        return MAEObjective(require_model(self.kind, model, MAE, VideoMAEPretraining, AudioMAE), context)


class MAEObjective(nn.Module):
    """Batch, all normalised: `pixels` (B, channels, S, S), `clip` (B, channels, T, S, S) or `spectrogram` (B, 1, times, mel bins)."""

    def __init__(self, model: MAE | VideoMAEPretraining | AudioMAE, context: ObjectiveContext | None = None) -> None:
        super().__init__()
        self.model = model
        self.input = "pixels" if isinstance(model, MAE) else "spectrogram" if isinstance(model, AudioMAE) else "clip"
        self._context = context or ObjectiveContext()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.losses(require_tensor(batch, self.input), self.noise(batch["draw"]))

    def noise(self, draw: Tensor) -> Tensor:
        """Draw uniform noise (B, L): the patches with the lowest values are visible."""
        return random_draws.uniform(draw, (self.model.config.patches,), "mask")

    def losses(self, inputs: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Return the mean over removed patches of all ranks, whose numbers of samples may differ."""
        answer: MAEOutput = self.model(inputs, noise)
        return {"loss": term_of_mean(answer.loss, answer.mask.sum())}

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Images that the encoder saw, and the whole as predicted."""
        preprocess = self._context.preprocess
        if preprocess is None or not isinstance(self.model, MAE):
            return {}
        pictures = self.model.visualise(batch["pixels"], self.model(batch["pixels"], self.noise(batch["draw"])))
        images = {"masked": pictures.masked, "predicted": pictures.pasted}
        return {name: to_pixels(image, preprocess.mean, preprocess.std) for name, image in images.items()}
