"""Temperatures of a network's labels, each by itself: what their logits are divided by, so that scores are as sure as they are right."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from models.lart.model import LART
from training.evaluation.actions.moments import Floats
from training.evaluation.actions.thresholds import Labels

HOTTEST = 6.0
EDGE = 1e-6


def temperatures(labels: Labels, scores: Floats) -> list[float]:
    """One a label, from the labels (N,) of moments and their scores (N, labels): that under which they are most likely. None is below 1:
    most moments are of recordings that were trained on, which make any network look too careful."""
    return [_temperature(scores[:, label], labels == label) for label in range(scores.shape[1])]


def _temperature(scores: Floats, shown: Floats) -> float:
    clipped = np.clip(scores.astype(np.float64), EDGE, 1 - EDGE)
    logits = np.log(clipped / (1 - clipped))
    signs = np.where(shown, 1.0, -1.0)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -signs * logits / np.exp(log_temperature)).mean())

    return round(float(np.exp(minimize_scalar(loss, bounds=(0.0, np.log(HOTTEST)), method="bounded").x)), 3)


@torch.no_grad()
def cool(network: LART, by: list[float]) -> None:
    """Divide the logits of each label, in place: nothing that serves the network has to know of temperatures."""
    divisors = torch.tensor(by)
    network.heads.actions.weight.div_(divisors[:, None])
    network.heads.actions.bias.div_(divisors)
