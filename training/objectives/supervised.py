"""Classification with token merging active in training (section 4.3 of arXiv 2210.09461): each batch under one of a few schedules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.merge_schedule import MergeSchedule
from models.vit.model import ViT


class Supervised(nn.Module):
    """A schedule is drawn for every batch, so that one set of weights serves the whole ladder."""

    def __init__(self, model: ViT, schedules: Sequence[MergeSchedule], label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.schedules = tuple(schedules)
        self.label_smoothing = label_smoothing

    def forward(self, pixels: Tensor, targets: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S), labels (B,) → the loss. The draw comes from torch's global generator."""
        schedule = self.schedules[int(torch.randint(len(self.schedules), ()))]
        logits = self.model(pixels, merge=schedule).logits
        return F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)
