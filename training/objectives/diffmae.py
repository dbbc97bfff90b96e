"""DiffMAE's pre-training (arXiv 2304.03283): denoise the masked patches at random times, given the visible ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from models.layers.masked_encoder import gather_tokens
from models.layers.patches import to_pixels
from models.systems.diffmae.masks import PatchSplit
from models.systems.diffmae.model import DiffMAE, DiffMAEOutput, PredictionTarget
from models.systems.vit.model import ViT
from training import random_draws
from training.collectives import term_of_mean
from training.objectives import masks
from training.objectives.checks import load_teacher, require_model, require_tensor
from training.objectives.masks import Strategy
from training.objectives.protocols import Batch, ObjectiveContext, ObjectiveSettings


class DiffMAESettings(ObjectiveSettings):
    kind: Literal["diffmae"] = "diffmae"
    masks: dict[Strategy, float] = Field(default={Strategy.RANDOM: 1.0}, min_length=1)
    """Odds of the strategies. A model that is to serve users' masks learns from blocks, boxes and strokes, too."""
    mask_ratio: float = Field(default=0.75, gt=0, le=1)
    """Share that random masks remove: 0.9 for clips."""
    pixel_weight: float = Field(default=1.0, ge=0)
    """Weight of the loss of pixels; that of `clip_width` features is in the model. 0: only features are predicted."""
    parts: int = Field(default=1, gt=0)
    """Parts of a micro-batch that are padded apart, by the number of masked patches: the same loss for less time where masks differ in
    size."""
    teacher: Path | None = None
    """Bundle of a ViT, or of a pair with one, whose patches the second head predicts; for models with `clip_width`."""

    @field_validator("masks")
    @classmethod
    def _odds(cls, value: dict[Strategy, float]) -> dict[Strategy, float]:
        if min(value.values()) < 0 or sum(value.values()) <= 0:
            raise ValueError("odds are not negative, and not all 0")
        return value

    def build(self, model: nn.Module, context: ObjectiveContext) -> DiffMAEObjective:
        teacher = None if self.teacher is None else load_teacher(self.teacher)
        network: DiffMAE = require_model(self.kind, model, DiffMAE)
        if network.config.clip_width and teacher is None:
            raise ValueError("objective.teacher: a model with clip_width needs one")
        return DiffMAEObjective(network, self, teacher, context)


@dataclass(frozen=True)
class DiffMAEDraw:
    """Random choices for a batch."""

    split: PatchSplit
    t: Tensor
    """(B,)."""
    noise: Tensor
    """(B, M, P), normal."""

    def part(self, rows: Tensor, split: PatchSplit) -> DiffMAEDraw:
        """Select samples, with less padding."""
        noise = self.noise[rows, : split.masked.shape[1]]
        return DiffMAEDraw(split, self.t[rows], noise)


class DiffMAEObjective(nn.Module):
    """Batch: normalised `pixels` (B, channels, H, W), or `clip` (B, channels, T, H, W)."""

    def __init__(
        self,
        model: DiffMAE,
        settings: DiffMAESettings,
        teacher: nn.Module | None = None,
        context: ObjectiveContext | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self._context = context or ObjectiveContext()
        self.input = "pixels" if model.config.frames is None else "clip"
        self.teacher = None if teacher is None else _vision(teacher).requires_grad_(False).eval()
        self._check(model.config.clip_width)

    def train(self, mode: bool = True) -> DiffMAEObjective:
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.losses(require_tensor(batch, self.input), self.draw_inputs(batch["draw"]))

    def draw_inputs(self, draw: Tensor) -> DiffMAEDraw:
        """Draws (B,) → masks, times and noise."""
        config, settings = self.model.config, self.settings
        split = masks.split(draw, config.grid, settings.masks, settings.mask_ratio)
        t = random_draws.integers(draw, (), 0, config.schedule.steps, "time")
        noise = random_draws.normal(draw, (config.patches, config.patch_values), "noise")
        return DiffMAEDraw(split, t, gather_tokens(noise, split.masked))

    def losses(self, pixels: Tensor, drawn: DiffMAEDraw, clip_target: Tensor | None = None) -> dict[str, Tensor]:
        """Return the losses. `clip_target` (B, N, clip_width) are features of all patches, by default the teacher's."""
        if clip_target is None and self.teacher is not None:
            with torch.no_grad():
                clip_target = self.teacher.encode_patches(pixels)
        counts, pixel_means, clip_means = [], [], []
        for rows, split in masks.partition_by_size(drawn.split, self.settings.parts):
            features = None if clip_target is None else clip_target[rows]
            part = drawn.part(rows, split)
            answer: DiffMAEOutput = self.model(pixels[rows], split, part.t, part.noise, features)
            pixel_means.append(answer.loss_pixel)
            clip_means += [] if answer.loss_clip is None else [answer.loss_clip]
            counts.append(masks.lengths(split.masked, split.masked_size).sum().float())
        count = torch.stack(counts)  # (parts,)
        share = (count / count.sum()).to(pixel_means[0].dtype)
        pixel = term_of_mean((torch.stack(pixel_means) * share).sum(), count.sum())
        if not clip_means:
            return {"loss": pixel}
        clip = term_of_mean((torch.stack(clip_means) * share).sum(), count.sum())
        loss = self.settings.pixel_weight * pixel + self.model.config.clip_weight * clip
        return {"loss": loss, "loss_pixel": pixel.detach(), "loss_clip": clip.detach()}

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Images that the encoder saw, and with the masked patches as predicted in one step from pure noise; of models that fill holes."""
        config, preprocess, draw = self.model.config, self._context.preprocess, batch["draw"]
        if preprocess is None or self.input != "pixels" or config.normalise_patches or config.target is not PredictionTarget.X0:
            return {}
        drawn, pixels = self.draw_inputs(draw), batch["pixels"]
        split = drawn.split
        last = torch.full_like(draw, config.schedule.steps - 1)
        filled = self.model.predict(drawn.noise, last, self.model.encode(pixels, split)).patches
        real = torch.ones_like(filled[..., :1]) if split.masked_size is None else split.masked_size
        patches = self.model.patchify(pixels)
        index = split.masked.unsqueeze(-1).expand_as(filled)  # padding points at the first patch, and adds nothing there
        hidden = torch.zeros_like(patches).scatter_add(1, index, real.expand_as(filled)) > 0
        made = torch.zeros_like(patches).scatter_add(1, index, filled * real)
        images = {"masked": patches.masked_fill(hidden, 0.0), "predicted": torch.where(hidden, made, patches)}
        return {name: to_pixels(self.model.unpatchify(image), preprocess.mean, preprocess.std) for name, image in images.items()}

    def _check(self, clip_width: int | None) -> None:
        """Check the teacher. Raises ValueError."""
        if self.teacher is None:
            return
        config, grid = self.teacher.config, self.model.config.grid[1:]
        if clip_width != config.features:
            raise ValueError(f"teacher: its patches have {config.features} channels, and model.clip_width is {clip_width}")
        if self.input != "pixels" or config.grid != grid:
            raise ValueError(f"teacher: it sees {config.grid} patches of an image, the model {grid} of {self.input}")


def _vision(teacher: nn.Module) -> ViT:
    """Return the ViT of a teacher. Raises ValueError."""
    tower = getattr(teacher, "vision", teacher)
    if not isinstance(tower, ViT):
        raise ValueError(f"teacher: a bundle of a ViT, or of a pair with one, is needed, not {type(teacher).__name__}")
    return tower


RIDGE = 10.0
"""Added to the diagonal of the normal equations of some ten thousand patches."""


@torch.no_grad()
def fit_diffmae_head(objective: DiffMAEObjective, batches: Iterable[Batch]) -> None:
    """Set `decoder_pred`, in place, to the ridge regression of the targets on its input, at the times, masks and noise of the batches."""
    model = objective.model
    seen: list[Tensor] = []
    hook = model.decoder_norm.register_forward_hook(lambda _module, _inputs, normed: seen.append(normed))
    size = model.decoder_pred.in_features + 1  # the last is the bias
    products = RIDGE * torch.eye(size, dtype=torch.float64)
    moments = torch.zeros(size, model.decoder_pred.out_features, dtype=torch.float64)
    try:
        for batch in batches:
            drawn = objective.draw_inputs(batch["draw"])
            pixels, split, t = require_tensor(batch, objective.input), drawn.split, drawn.t
            x0 = model.targets(pixels, split)
            model.predict(model.config.schedule.add_noise(x0, t, drawn.noise), t, model.encode(pixels, split))
            real = torch.ones_like(split.masked, dtype=torch.bool) if split.masked_size is None else split.masked_size.squeeze(-1) > 0
            features = F.pad(seen.pop()[real].double(), (0, 1), value=1.0)  # (patches, C + 1)
            products += features.T @ features
            moments += features.T @ (x0 if model.config.target is PredictionTarget.X0 else drawn.noise)[real].double()
    finally:
        hook.remove()
    weights = torch.linalg.solve(products, moments).float()
    model.decoder_pred.weight.copy_(weights[:-1].T)
    model.decoder_pred.bias.copy_(weights[-1])
