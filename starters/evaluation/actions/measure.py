"""Evaluation of an action recognition network, for a bundle's `quality`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, confusion_matrix

from models.arrays import FloatArray
from models.systems.lart.model import LART
from starters.data.people.motions import STAND, MotionTracks, open_takes
from starters.evaluation.actions import methods, real_clips
from starters.evaluation.actions.samples import Moments, Views, draw_training_moments, moments_of_takes
from starters.evaluation.actions.settings import ActionsSettings

LART_NAME, SINGLE, NEAREST, LOGISTIC = "LART", "LART on single frames", "nearest pose", "logistic regression"
MIN_RECORDINGS = 8
"""Minimum number of unseen recordings of a standard error over recordings."""


def measure(source: MotionTracks, settings: ActionsSettings, network: LART, single: LART, cache: Path, seed: int) -> dict[str, Any]:
    """Evaluate the test split. Raises DataError."""
    views = Views(settings.every, settings.cameras, seed)
    unseen = moments_of_takes(open_takes(settings.held_out, source.settings, cache), source, views)
    trained = moments_of_takes(source.takes, source, replace(views, seed=seed + 1))
    drawn = draw_training_moments(source, settings.drawn, seed)
    labels, rate = source.labels, source.settings.rate

    def scores_of(moments: Moments) -> dict[str, FloatArray]:
        return {
            LART_NAME: methods.lart(network, moments, rate),
            SINGLE: methods.lart_on_single_frames(single, moments),
            NEAREST: methods.nearest_pose(drawn, moments, len(labels)),
            LOGISTIC: methods.logistic_statistics(drawn, moments, len(labels)),
        }

    scores = scores_of(unseen)
    return {
        "recordings": {
            "trained": [take.name for take in source.takes],
            "validation": [],
            "unseen": [recording.name for recording in settings.held_out],
        },
        "standing_behind": count_recordings(source, settings),
        "cameras": settings.cameras,
        "unseen": table(unseen, scores, labels),
        "known": table(trained, scores_of(trained), labels),
        "by_recording": _accuracy_by_recording(unseen, scores[LART_NAME]),
        "confusion": _confusion(unseen, scores[LART_NAME], len(labels)),
        "clips": [real_clips.describe_clip(clip, network, source, cache) for clip in settings.clips],
    }


def count_recordings(source: MotionTracks, settings: ActionsSettings) -> list[dict[str, Any]]:
    """Count the recordings of each class over all splits. A class with a single recording is unverified."""
    named = [*source.settings.recordings, *settings.held_out]
    rows = []
    for label in source.labels:
        count = sum(label in {part.label for part in one.parts} or (one.standing and label == STAND) for one in named)
        rows.append({"label": label, "recordings": count, "unverified": count < 2})
    return rows


def table(moments: Moments, scores: Mapping[str, FloatArray], labels: Sequence[str]) -> dict[str, Any]:
    """Return accuracy and average precision of each method, by class and overall, for classes with moments."""
    present = np.unique(moments.labels).tolist()
    rows = []
    for label in present:
        is_label = moments.labels == label
        rows.append(
            {
                "label": labels[label],
                "moments": int(is_label.sum()),
                "recordings": sorted({name for name, has_label in zip(moments.recordings, is_label, strict=True) if has_label}),
                "accuracy": {name: _round((values[is_label].argmax(axis=1) == label).mean()) for name, values in scores.items()},
                "average_precision": {name: _round(average_precision_score(is_label, values[:, label])) for name, values in scores.items()},
            }
        )
    return {
        "moments": len(moments),
        "classes": rows,
        "accuracy": {name: _accuracy(moments, values) for name, values in scores.items()},
        "mean_accuracy": {name: _round(np.mean([row["accuracy"][name] for row in rows])) for name in scores},
        "map": {name: _round(np.mean([row["average_precision"][name] for row in rows])) for name in scores},
    }


def _accuracy(moments: Moments, scores: FloatArray) -> dict[str, float]:
    """Return the accuracy, with a standard error over recordings if there are enough of them."""
    right = scores.argmax(axis=1) == moments.labels
    by_recording = [right[np.array(moments.recordings) == name].mean() for name in sorted(set(moments.recordings))]
    if len(by_recording) < MIN_RECORDINGS:
        return {"value": _round(right.mean())}
    return {"value": _round(right.mean()), "standard_error": _round(np.std(by_recording, ddof=1) / np.sqrt(len(by_recording)))}


def _accuracy_by_recording(moments: Moments, scores: FloatArray) -> list[dict[str, Any]]:
    names, right = np.array(moments.recordings), scores.argmax(axis=1) == moments.labels
    return [
        {"recording": name, "moments": int((names == name).sum()), "accuracy": _round(right[names == name].mean())}
        for name in dict.fromkeys(moments.recordings)
    ]


def _confusion(moments: Moments, scores: FloatArray, classes: int) -> list[list[int]]:
    """Count moments by true class (rows) and predicted class (columns)."""
    counts = confusion_matrix(moments.labels, scores.argmax(axis=1), labels=range(classes))
    return [[int(count) for count in row] for row in counts]


def _round(value: Any) -> float:
    return round(float(value), 4)
