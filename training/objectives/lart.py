"""LART's losses (arXiv 2304.01199): actions above all; pose, place and Kinetics' classes as the published code has them, unused."""

from __future__ import annotations

from enum import Enum
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from models.lart.model import LART
from models.people.tracks import Hidden, Tracks
from training import draws
from training.objectives.base import Batch, Facts
from training.optim import ParameterGroup
from training.optim_lart import finetuning_groups, pretraining_groups
from training.settings import OptimiserSettings, Settings

ACTION_WEIGHT = 10.0


class GroundTruth(Enum):
    """Which tokens have labels to learn from: the least and the most `has_gt`, 2 for people's labels, 1 for a network's, 0 for none."""

    ALL = (1, 2)
    LABELS = (2, 2)
    PSEUDO = (1, 1)


def action_loss(logits: Tensor, targets: Tensor, detected: Tensor, has_gt: Tensor, which: GroundTruth = GroundTruth.ALL) -> Tensor:
    """Binary cross-entropy, 10 times its mean over detected and labelled tokens, hidden ones included; 0 if there are none.

    logits: (B, T, P, classes); targets: the same, in [0, 1], the classes in front if there are more; detected, has_gt: (B, T, P, 1).
    """
    least, most = which.value
    chosen = (detected != 0) & (has_gt >= least) & (has_gt <= most)
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets[..., : logits.shape[-1]].float(), reduction="none")
    return ACTION_WEIGHT * (losses * chosen).sum() / (chosen.sum() * logits.shape[-1]).clamp(min=1)


def regression_loss(predicted: Tensor, target: Tensor, chosen: Tensor, power: int) -> Tensor:
    """Of poses (their first 226 values) or places: the sum of |error|^power over the chosen tokens by their number and one.

    predicted, target: (..., D); chosen: (..., 1) of bool; power: 1 or 2.
    """
    return ((predicted - target).abs() ** power * chosen).sum() / (chosen.sum() + 1)


def kinetics_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of (B, P, classes) to labels (B, P)."""
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


class LARTSettings(Settings):
    kind: Literal["lart"] = "lart"
    labels: Literal["all", "people", "network"] = "all"
    """Which labels count: everybody's, those that people gave, or a network's."""


_LABELS = {"all": GroundTruth.ALL, "people": GroundTruth.LABELS, "network": GroundTruth.PSEUDO}


class MaskedTracks(nn.Module):
    """Actions of tracked people, a share of whose tokens is hidden."""

    def __init__(self, model: LART, which: GroundTruth) -> None:
        super().__init__()
        self.model = model
        self.which = which

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """pose, detected, joints, appearance: (B, T, P, ·) as in `Tracks`; actions (B, T, P, classes); labelled (B, T, P, 1)."""
        tracks = Tracks(batch["pose"], batch["detected"], batch.get("joints"), batch.get("appearance"), batch.get("masked"))
        noise = draws.uniform(batch["draw"], tuple(batch["detected"].shape[1:]), stream=0)
        recognised = self.model(tracks, Hidden.at_random(tracks, self.model.config.mask_ratio, noise))
        loss = action_loss(recognised.reading.actions, batch["actions"], batch["detected"], batch["labelled"], self.which)
        idle = sum(parameter.sum() for parameter in self.model.parameters() if parameter.requires_grad)
        return {"loss": loss + 0 * idle}

    def parameter_groups(self, settings: OptimiserSettings) -> list[ParameterGroup]:
        if settings.layer_decay == 1:
            return pretraining_groups(self.model, settings.weight_decay)
        return finetuning_groups(self.model, layer_decay=settings.layer_decay, weight_decay=settings.weight_decay)


def build(settings: LARTSettings, model: nn.Module, facts: Facts) -> MaskedTracks:
    if not isinstance(model, LART):
        raise ValueError("objective lart needs a model of architecture lart")
    return MaskedTracks(model, _LABELS[settings.labels])
