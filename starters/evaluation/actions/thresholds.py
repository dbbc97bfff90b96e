"""Thresholds of labels: the lowest score above which a label reaches a precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.arrays import FloatArray, Int64Array

PRECISION = 0.8
NEVER = 1.0
"""Threshold of a label that reaches the precision at no score."""


def thresholds(labels: Int64Array, scores: FloatArray, precision: float = PRECISION) -> list[float]:
    """Return a threshold per label, from labels (N,) and scores (N, labels) of moments.

    A moment counts for every label, since too few of the moments with the best score are wrong to find a threshold."""
    return [_threshold(scores[:, label], labels == label, precision) for label in range(scores.shape[1])]


def _threshold(scores: FloatArray, right: NDArray[np.bool_], precision: float) -> float:
    order = np.argsort(-scores, kind="stable")
    shares = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(shares >= precision)
    return math.floor(1e4 * float(scores[order][enough[-1]])) / 1e4 if len(enough) else NEVER


def reliance(labels: Int64Array, scores: FloatArray, minimum_scores: Sequence[float]) -> dict[str, Any]:
    """Return how often the best label is right, of all moments, sure and unsure ones. minimum_scores: a threshold per label."""
    best = scores.argmax(axis=1)
    rows = np.arange(len(best))
    right, sure = best == labels, scores[rows, best] >= np.array(minimum_scores)[best]
    return {
        "moments": len(right),
        "right": _share(right),
        "sure": _share(sure),
        "right_of_sure": _share(right[sure]),
        "right_of_unsure": _share(right[~sure]),
    }


def _share(mask: NDArray[np.bool_]) -> float | None:
    return round(float(mask.mean()), 4) if len(mask) else None
