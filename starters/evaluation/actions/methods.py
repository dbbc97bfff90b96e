"""Ways to tell the action of a moment: LART, and what it must beat. Each gives a score for every class, (N, classes)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from models.people.track_batch import TrackBatch
from models.systems.lart.model import LART
from starters.evaluation.actions.samples import Floats, Moments

AROUND = 0.2
"""Seconds before and after a moment over which LART's scores are averaged, as AVA's evaluation does (`avg.6` at 30 frames a second)."""
STATISTICS = 7
"""Rows before and after a moment that logistic regression sees."""
POSE = 51
"""Values of a token that tell the pose alone."""


@torch.inference_mode()
def lart(model: LART, moments: Moments, rate: float, batch_size: int = 256) -> Floats:
    """Sigmoids, averaged around each moment."""
    reach = round(AROUND * rate)
    scores = []
    for start in range(0, len(moments), batch_size):
        chosen = slice(start, start + batch_size)
        pose, detected = torch.from_numpy(moments.pose[chosen]), torch.from_numpy(moments.detected[chosen])
        logits = model(TrackBatch(pose[:, :, None], detected[:, :, None, None].float())).reading.actions[:, :, 0]  # (B, T, classes)
        asked = zip(logits, moments.rows[chosen].tolist(), strict=True)
        around = [one[max(0, row - reach) : row + reach].sigmoid().mean(dim=0) for one, row in asked]
        scores.append(torch.stack(around))
    return np.asarray(torch.cat(scores).numpy())


@torch.inference_mode()
def lart_on_single_frames(model: LART, moments: Moments) -> Floats:
    pose = torch.from_numpy(moments.tokens)[:, None, None]  # (N, 1, 1, 55)
    logits = model(TrackBatch(pose, torch.ones(*pose.shape[:3], 1))).reading.actions
    return np.asarray(logits[:, 0, 0].sigmoid().numpy())


def nearest_pose(known: Moments, moments: Moments, classes: int) -> Floats:
    """The less the distance to the nearest pose of a class, the higher."""
    theirs, asked = known.tokens[:, :POSE], moments.tokens[:, :POSE]
    distances = np.square(theirs).sum(axis=1) - 2 * asked @ theirs.T + np.square(asked).sum(axis=1, keepdims=True)  # (N, known)
    scores = np.full((len(asked), classes), -1e9)
    for label in np.unique(known.labels):
        scores[:, label] = -distances[:, known.labels == label].min(axis=1)
    return scores


def logistic_statistics(known: Moments, moments: Moments, classes: int) -> Floats:
    """Multinomial logistic regression on the mean, spread and speed of each value of a token around a moment."""
    from sklearn.linear_model import LogisticRegression  # takes seconds to import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300)).fit(statistics(known), known.labels)
    scores = np.zeros((len(moments), classes))
    scores[:, model.classes_] = model.predict_proba(statistics(moments))
    return scores


def statistics(moments: Moments) -> Floats:
    """(N, 165)."""
    rows: list[NDArray[np.float64]] = []
    for pose, detected, row in zip(moments.pose, moments.detected, moments.rows, strict=True):
        around = slice(max(0, row - STATISTICS), row + STATISTICS + 1)
        seen = pose[around][detected[around]]
        speed = np.abs(np.diff(seen, axis=0)).mean(axis=0) if len(seen) > 1 else np.zeros(seen.shape[1])
        rows.append(np.concatenate([seen.mean(axis=0), seen.std(axis=0), speed]))
    return np.stack(rows)
