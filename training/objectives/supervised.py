"""Classification with token merging active in training (section 4.3 of arXiv 2210.09461): each batch under one of a few schedules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.merge_schedule import MergeSchedule
from models.vit.model import ViT
from training import draws
from training.objectives.base import Batch, Facts
from training.optim import ParameterGroup, layer_decay_groups
from training.settings import OptimiserSettings, Settings


class SupervisedSettings(Settings):
    kind: Literal["supervised"] = "supervised"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    merge: list[int | list[int] | dict[str, int | float]] = Field(default=[0], min_length=1)
    """Each step trains under one of these merge schedules, drawn at random."""

    @model_validator(mode="after")
    def _schedules(self) -> Self:
        for schedule in self.merge:
            MergeSchedule.parse(schedule)
        return self


class Supervised(nn.Module):
    """A schedule is drawn for every batch, so that one set of weights serves the whole ladder."""

    def __init__(self, model: ViT, schedules: Sequence[MergeSchedule], label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.schedules = tuple(schedules)
        self.label_smoothing = label_smoothing

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """pixels: normalised (B, 3, S, S); label: (B,). All ranks draw the same schedule."""
        drawn = draws.integers(draws.of_batch(batch["draw"]), (), 0, len(self.schedules), stream="merge schedule")
        schedule = self.schedules[int(drawn)]
        logits = self.model(batch["pixels"], merge=schedule).logits.float()
        right = (logits.detach().argmax(dim=1) == batch["label"]).float().mean()
        return {"loss": F.cross_entropy(logits, batch["label"], label_smoothing=self.label_smoothing), "accuracy": right}

    def parameter_groups(self, settings: OptimiserSettings) -> list[ParameterGroup]:
        return layer_decay_groups(self.model, layer_decay=settings.layer_decay, weight_decay=settings.weight_decay)


def build(settings: SupervisedSettings, model: nn.Module, facts: Facts) -> Supervised:
    if not isinstance(model, ViT):
        raise ValueError("objective supervised needs a model of architecture vit")
    return Supervised(model, [MergeSchedule.parse(schedule) for schedule in settings.merge], settings.label_smoothing)
