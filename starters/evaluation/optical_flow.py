"""Baseline for camera moves: a random forest on similarities fitted to the optical flow between frames."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from models.arrays import Float64Array, UInt8Array

_EVERY = 4
"""Spacing in pixels of the points whose flow is fitted."""
_TREES = 300


class FlowForest:
    """Random forest fitted to clips (T, S, S, 3) with labels."""

    def __init__(self, clips: Iterable[tuple[UInt8Array, int]], classes: int) -> None:
        from sklearn.ensemble import RandomForestClassifier  # takes seconds to import

        features, labels = zip(*((features_of(clip), label) for clip, label in clips), strict=True)
        self._forest = RandomForestClassifier(_TREES, random_state=0).fit(np.stack(features), np.array(labels))
        self._classes = classes

    def scores(self, clips: Iterable[UInt8Array]) -> Float64Array:
        """Return the scores of a video, the mean over its clips: (classes,)."""
        mean = self._forest.predict_proba(np.stack([features_of(clip) for clip in clips])).mean(axis=0)
        scores = np.zeros(self._classes)
        scores[self._forest.classes_] = mean
        return scores


def features_of(clip: UInt8Array) -> Float64Array:
    """Return mean, standard deviation and mean absolute value of displacement in half sides, log scale and radians per frame."""
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip]
    steps = np.array([_similarity(before, after) for before, after in pairwise(grey)])  # (T - 1, 4)
    return np.concatenate([steps.mean(axis=0), steps.std(axis=0), np.abs(steps).mean(axis=0)])


def _similarity(before: npt.NDArray[Any], after: npt.NDArray[Any]) -> tuple[float, float, float, float]:
    height, width = before.shape
    no_flow = np.zeros((height, width, 2), np.float32)
    flow = cv2.calcOpticalFlowFarneback(before, after, no_flow, 0.5, 3, 13, 3, 5, 1.1, 0)[::_EVERY, ::_EVERY].reshape(-1, 2)
    rows, columns = np.mgrid[:height:_EVERY, :width:_EVERY]
    points = np.stack([columns.ravel() - width / 2, rows.ravel() - height / 2], axis=1).astype(np.float32)
    found = cv2.estimateAffinePartial2D(points, points + flow, method=cv2.RANSAC, ransacReprojThreshold=0.7)[0]
    if found is None:
        return 0.0, 0.0, 0.0, 0.0
    half, (cos, sin) = min(height, width) / 2, (found[0, 0], found[1, 0])
    return found[0, 2] / half, found[1, 2] / half, math.log(max(math.hypot(cos, sin), 1e-3)), math.atan2(sin, cos)
