"""A last layer by regression: occupancy and colours, read at the start from what an MCC's decoder makes of queries, and from what they know
of both sides where they do."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from training.objectives.mcc import MCCObjective
from training.objectives.protocols import Batch

RIDGE = 1.0
"""Added to the diagonals of the normal equations of some ten thousand queries."""
_ROUNDS = 12
"""Rounds of Newton's method at most; it takes fewer."""


@torch.no_grad()
def fit_mcc_head(objective: MCCObjective, batches: Iterable[Batch]) -> None:
    """Set `decoder_pred`, in place: occupancy by logistic regression, colours of occupied queries by ridge regression.

    Of a network that predicts classes of colours, occupancy alone is fitted.
    """
    model = objective.model
    rows, occupied, colours = [], [], []
    for batch in batches:
        outputs, labels = objective.decode_training_queries(batch)
        rows.append(outputs.flatten(0, 1))
        occupied.append(labels.occupied.flatten())
        colours.append(labels.colours.flatten(0, 1))
    x = F.pad(torch.cat(rows).double(), (0, 1), value=1.0)  # (queries, C + 1), the last for the bias
    inside = torch.cat(occupied).double()
    _write(model.decoder_pred, slice(0, 1), _logistic(x, inside).unsqueeze(1))
    if model.config.regress_colour:
        near = x[inside > 0]
        targets = torch.cat(colours).double()[inside > 0]
        _write(model.decoder_pred, slice(1, 4), torch.linalg.solve(near.T @ near + _ridge(x), near.T @ targets))


def _logistic(x: Tensor, y: Tensor) -> Tensor:
    """Fit weights (C,) of a logistic regression of y (N,), 0 or 1, on x (N, C), by Newton's method."""
    weights, ridge = x.new_zeros(x.shape[1]), _ridge(x)
    for _ in range(_ROUNDS):
        p = (x @ weights).sigmoid()
        step = torch.linalg.solve((x * (p * (1 - p)).unsqueeze(1)).T @ x + ridge, x.T @ (p - y) + RIDGE * weights)
        weights = weights - step
        if step.norm() < 1e-4 * weights.norm():
            break
    return weights


def _ridge(x: Tensor) -> Tensor:
    return RIDGE * torch.eye(x.shape[1], dtype=x.dtype)


def _write(layer: torch.nn.Linear, outputs: slice, weights: Tensor) -> None:
    """Set outputs of a layer to weights (C + 1, outputs), the last row of which are biases."""
    layer.weight[outputs] = weights[:-1].T.float()
    layer.bias[outputs] = weights[-1].float()
