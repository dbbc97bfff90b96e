"""From which score on a label can be relied on: the least one with so many right among the moments in which it scores as much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starters.evaluation.actions.samples import Floats

Labels = NDArray[np.int64]

PRECISION = 0.8
NEVER = 1.0
"""Threshold of a label that no score makes right often enough."""


def thresholds(labels: Labels, scores: Floats, precision: float = PRECISION) -> list[float]:
    """One a label, from the labels (N,) of moments and their scores (N, labels). A moment counts for each label by its score, whether that
    is the best or not: of those that it is best for, too few are wrong to tell where it stops being reliable."""
    return [_threshold(scores[:, label], labels == label, precision) for label in range(scores.shape[1])]


def _threshold(scores: Floats, right: NDArray[np.bool_], precision: float) -> float:
    order = np.argsort(-scores, kind="stable")
    shares = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(shares >= precision)
    return math.floor(1e4 * float(scores[order][enough[-1]])) / 1e4 if len(enough) else NEVER


def reliance(labels: Labels, scores: Floats, least: Sequence[float]) -> dict[str, Any]:
    """How often the best label is right, of all moments and of those that are not unsure. least: a threshold a label."""
    best = scores.argmax(axis=1)
    rows = np.arange(len(best))
    right, sure = best == labels, scores[rows, best] >= np.array(least)[best]
    return {
        "moments": len(right),
        "right": _share(right),
        "sure": _share(sure),
        "right_of_sure": _share(right[sure]),
        "right_of_unsure": _share(right[~sure]),
    }


def _share(which: NDArray[np.bool_]) -> float | None:
    return round(float(which.mean()), 4) if len(which) else None
