"""Measurements of a network of actions, as a bundle's `quality` says them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score

from models.lart.model import LART
from training.data.motions import MotionTracks, open_takes
from training.recognising import clips, moments, recognisers
from training.recognising.moments import Floats, Moments
from training.recognising.settings import ActionsQuality

LART_NAME, SINGLE, NEAREST, LOGISTIC = "LART", "LART on single frames", "nearest pose", "logistic regression"
ENOUGH_RECORDINGS = 8
"""Unseen recordings from which a standard error over recordings is stated."""


def measure(source: MotionTracks, settings: ActionsQuality, network: LART, single: LART, cache: Path, seed: int) -> dict[str, Any]:
    """Raises DataError."""
    unseen = open_takes(settings.held_out, source.settings, cache)
    asked = moments.of_takes(unseen, source, every=settings.every, cameras=settings.cameras, seed=seed)
    known = moments.of_takes(source.takes, source, every=settings.every, cameras=settings.cameras, seed=seed + 1)
    drawn = moments.of_training(source, settings.drawn, seed)
    labels, rate = source.labels, source.settings.rate

    def scores(these: Moments) -> dict[str, Floats]:
        return {
            LART_NAME: recognisers.lart(network, these, rate),
            SINGLE: recognisers.lart_on_single_frames(single, these),
            NEAREST: recognisers.nearest_pose(drawn, these, len(labels)),
            LOGISTIC: recognisers.logistic_statistics(drawn, these, len(labels)),
        }

    answers = scores(asked)
    return {
        "recordings": {"trained": [take.name for take in source.takes], "unseen": [take.name for take in unseen]},
        "cameras": settings.cameras,
        "unseen": table(asked, answers, labels),
        "known": table(known, scores(known), labels),
        "by_recording": _by_recording(asked, answers[LART_NAME]),
        "confusion": _confusion(asked, answers[LART_NAME], len(labels)),
        "clips": [clips.told(clip, network, source, cache) for clip in settings.clips],
    }


def table(asked: Moments, answers: Mapping[str, Floats], labels: Sequence[str]) -> dict[str, Any]:
    """Accuracy and average precision of each way, by class and together. Classes that nobody asks about are left out."""
    present = np.unique(asked.labels).tolist()
    rows = []
    for label in present:
        mine = asked.labels == label
        rows.append(
            {
                "label": labels[label],
                "moments": int(mine.sum()),
                "recordings": sorted({name for name, own in zip(asked.recordings, mine, strict=True) if own}),
                "accuracy": {name: _rounded((scores[mine].argmax(axis=1) == label).mean()) for name, scores in answers.items()},
                "average_precision": {name: _rounded(average_precision_score(mine, scores[:, label])) for name, scores in answers.items()},
            }
        )
    return {
        "moments": len(asked),
        "classes": rows,
        "accuracy": {name: _accuracy(asked, scores) for name, scores in answers.items()},
        "mean_accuracy": {name: _rounded(np.mean([row["accuracy"][name] for row in rows])) for name in answers},
        "map": {name: _rounded(np.mean([row["average_precision"][name] for row in rows])) for name in answers},
    }


def _accuracy(asked: Moments, scores: Floats) -> dict[str, float]:
    """With a standard error over recordings, the unit that repeats, where there are enough of them."""
    right = scores.argmax(axis=1) == asked.labels
    by_recording = [right[np.array(asked.recordings) == name].mean() for name in sorted(set(asked.recordings))]
    if len(by_recording) < ENOUGH_RECORDINGS:
        return {"value": _rounded(right.mean())}
    return {"value": _rounded(right.mean()), "standard_error": _rounded(np.std(by_recording, ddof=1) / np.sqrt(len(by_recording)))}


def _by_recording(asked: Moments, scores: Floats) -> list[dict[str, Any]]:
    names, right = np.array(asked.recordings), scores.argmax(axis=1) == asked.labels
    return [
        {"recording": name, "moments": int((names == name).sum()), "accuracy": _rounded(right[names == name].mean())}
        for name in dict.fromkeys(asked.recordings)
    ]


def _confusion(asked: Moments, scores: Floats, classes: int) -> list[list[int]]:
    """Rows: true classes; columns: the network's."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (asked.labels, scores.argmax(axis=1)), 1)
    return [[int(count) for count in row] for row in counts]


def _rounded(value: Any) -> float:
    return round(float(value), 4)
