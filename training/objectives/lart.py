"""LART's losses (arXiv 2304.01199): actions above all; pose, place and Kinetics' classes as the published code has them, unused."""

from __future__ import annotations

from enum import Enum

import torch.nn.functional as F
from torch import Tensor

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
