"""Methods of action recognition: LART and logistic regression. Each returns a score for every class, (N, classes)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from models.arrays import FloatArray
from models.people.track_batch import TrackBatch
from models.systems.lart.model import LART
from starters.evaluation.actions.samples import Moments

AROUND_S = 0.2
"""Seconds before and after a moment over which LART's scores are averaged, as in AVA's evaluation (`avg.6` at 30 frames per second)."""
STATISTICS_ROWS = 7
"""Number of rows before and after a moment that logistic regression uses."""


@torch.inference_mode()
def lart(model: LART, moments: Moments, rate: float, batch_size: int = 256) -> FloatArray:
    """Return sigmoids, averaged around each moment."""
    reach = round(AROUND_S * rate)
    scores = []
    for start in range(0, len(moments), batch_size):
        chosen = slice(start, start + batch_size)
        pose, detected = torch.from_numpy(moments.pose[chosen]), torch.from_numpy(moments.detected[chosen])
        logits = model(TrackBatch(pose[:, :, None], detected[:, :, None, None].float())).reading.actions[:, :, 0]  # (B, T, classes)
        pairs = zip(logits, moments.rows[chosen].tolist(), strict=True)
        around = [track[max(0, row - reach) : row + reach].sigmoid().mean(dim=0) for track, row in pairs]
        scores.append(torch.stack(around))
    return np.asarray(torch.cat(scores).numpy())


def logistic_statistics(train: Moments, moments: Moments, classes: int) -> FloatArray:
    """Fit multinomial logistic regression on mean, standard deviation and speed of each token value around a moment."""
    from sklearn.linear_model import LogisticRegression  # takes seconds to import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300)).fit(statistics(train), train.labels)
    scores = np.zeros((len(moments), classes))
    scores[:, model.classes_] = model.predict_proba(statistics(moments))
    return scores


def statistics(moments: Moments) -> FloatArray:
    """Return the features of `logistic_statistics`, (N, 165)."""
    rows: list[NDArray[np.float64]] = []
    for pose, detected, row in zip(moments.pose, moments.detected, moments.rows, strict=True):
        around = slice(max(0, row - STATISTICS_ROWS), row + STATISTICS_ROWS + 1)
        seen = pose[around][detected[around]]
        speed = np.abs(np.diff(seen, axis=0)).mean(axis=0) if len(seen) > 1 else np.zeros(seen.shape[1])
        rows.append(np.concatenate([seen.mean(axis=0), seen.std(axis=0), speed]))
    return np.stack(rows)
