"""The metric of inputs that may have several labels, as AudioSet is measured by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mean_average_precision(scores: NDArray[np.floating], truth: NDArray[np.bool_]) -> tuple[float, int]:
    """Return the mean of `average_precision` over the labels that some input has, and the number of those labels.

    scores, truth: (inputs, labels); truth: which inputs have which label. Raises ValueError where no input has a label."""
    present = np.flatnonzero(truth.any(axis=0))
    if not len(present):
        raise ValueError("no input has a label")
    return float(np.mean([average_precision(scores[:, label], truth[:, label]) for label in present])), len(present)


def average_precision(scores: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
    """Return the sum over thresholds of precision × growth of recall, with a threshold at each score: no interpolation, and inputs of equal
    scores come in together (scikit-learn's `average_precision_score`).

    scores, truth: (inputs,), at least one of them true."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of each run of equal scores
    return float((np.diff(hits[last], prepend=0) * hits[last] / (last + 1)).sum() / hits[-1])
