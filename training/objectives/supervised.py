"""Classification with labels: fine-tuning of MAE and MAE-ST, training of ViT, Rev-ViT and MViT, with token merging active where a ladder is
to be served (section 4.3 of arXiv 2210.09461)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from models.layers.block import drop_path_rates
from models.mae_st.model import VideoMAE
from models.merge_schedule import MergeSchedule
from models.mvit.model import MViT
from models.mvit.reversible import RevMViT
from models.vit.model import ViT, ViTConfig
from training import draws
from training.objectives.mixing import Mixing
from training.objectives.settings import Decay, ObjectiveError, Settings, expect, need
from training.optim import ParameterGroup, layer_decay_groups, pretraining_groups
from training.reductions import term_of_mean


class SupervisedSettings(Settings):
    """The published recipes fine-tune with mixup 0.8, cutmix 1.0, label smoothing 0.1."""

    kind: Literal["supervised"] = "supervised"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    mixup: float = Field(default=0.0, ge=0)
    cutmix: float = Field(default=0.0, ge=0)
    mix_probability: float = Field(default=1.0, ge=0, le=1)
    cutmix_probability: float = Field(default=0.5, ge=0, le=1)
    """See `training.objectives.mixing.Mixing`."""
    multi_label: bool = False
    """Samples may have several labels: binary cross-entropy of each class; otherwise softmax cross-entropy."""
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    """Each layer learns so many times as fast as the one above; None: all alike."""
    merge: tuple[int | list[int] | dict[str, int | float], ...] = Field(default=(0,), min_length=1)
    """Each step trains under one of these merge schedules, drawn at random, the same on all ranks."""

    @field_validator("merge")
    @classmethod
    def _schedules(cls, value: tuple[object, ...]) -> tuple[object, ...]:
        for schedule in value:
            MergeSchedule.parse(schedule)
        return value

    def build(self, model: nn.Module) -> Supervised:
        return Supervised(expect(self.kind, model, ViT, VideoMAE, MViT, RevMViT), self)


class Supervised(nn.Module):
    """Batch: normalised `images` or, for models of clips, `clips`; `labels`, int64 (B,) or probabilities (B, classes)."""

    def __init__(self, model: ViT | VideoMAE | MViT | RevMViT, settings: SupervisedSettings) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.schedules = tuple(MergeSchedule.parse(schedule) for schedule in settings.merge)
        self.mixing = Mixing(settings.mixup, settings.cutmix, settings.mix_probability, settings.cutmix_probability)
        images = isinstance(model, ViT) or (isinstance(model, MViT | RevMViT) and model.config.images)
        self.input = "images" if images else "clips"
        if isinstance(model, MViT | RevMViT) and self.schedules != (MergeSchedule.off(),):
            raise ObjectiveError(f"merge: tokens of {type(model).__name__} do not merge")

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        draw, pixels = batch["draw"], need(batch, self.input)
        targets = soft_targets(need(batch, "labels"), self.model.config.classes, self.settings.label_smoothing)
        pixels, targets = self.mixing.mix(pixels, targets, draw)
        logits = self.classify(pixels, draw).float()
        if self.settings.multi_label:
            loss = F.binary_cross_entropy_with_logits(logits, targets)
        else:
            loss = F.cross_entropy(logits, targets)
        right = logits.detach().argmax(dim=1) == targets.argmax(dim=1)
        return {"loss": term_of_mean(loss, len(logits)), "accuracy": term_of_mean(right.float().mean(), len(logits))}

    def classify(self, pixels: Tensor, draw: Tensor) -> Tensor:
        """→ logits (B, classes), under the merge schedule of this step."""
        if isinstance(self.model, ViT):
            keep = keep_branches(self.model.config, draw) if self.training else None
            logits: Tensor = self.model(pixels, merge=self._schedule(draw), keep=keep).logits
        elif isinstance(self.model, VideoMAE):
            logits = self.model(pixels, merge=self._schedule(draw)).logits
        else:
            logits = self.model(pixels).logits
        return logits

    def parameter_groups(self, settings: Decay) -> list[ParameterGroup]:
        """One-dimensional parameters do not decay; with `layer_decay`, neither do tokens and positions."""
        decay, layer_decay = settings.weight_decay, self.settings.layer_decay
        if layer_decay is None:
            return pretraining_groups(self.model, decay)
        if not isinstance(self.model, ViT | VideoMAE):
            raise ObjectiveError(f"layer_decay: the layers of {type(self.model).__name__} have no published decay")
        return layer_decay_groups(self.model, layer_decay=layer_decay, weight_decay=decay)

    def _schedule(self, draw: Tensor) -> MergeSchedule:
        if len(self.schedules) == 1:
            return self.schedules[0]
        return self.schedules[int(draws.integers(draws.of_batch(draw), (), 0, len(self.schedules), "merge schedule"))]


def keep_branches(config: ViTConfig, draw: Tensor) -> Tensor | None:
    """(depth, 2, B) of 0 and 1, which samples keep which branches in stochastic depth, drawn per sample; (depth, B) in a reversible trunk.
    None if nothing is ever dropped."""
    if not config.drop_path:
        return None
    rates = torch.tensor(drop_path_rates(config.drop_path, config.depth), device=draw.device)
    if config.reversible:
        return (draws.uniform(draw, (config.depth,), "drop path") >= rates).float().T
    return (draws.uniform(draw, (config.depth, 2), "drop path") >= rates.unsqueeze(1)).float().permute(1, 2, 0)


def soft_targets(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Labels int64 (B,), or probabilities (B, classes) → probabilities, of which `smoothing` is spread over all classes."""
    hard = F.one_hot(labels, classes).float() if labels.dim() == 1 else labels.float()
    return hard * (1 - smoothing) + smoothing / classes
