"""Measurements of a network of actions, as a bundle's `quality` says them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score

from models.systems.lart.model import LART
from starters.data.people.motions import STAND, MotionTracks
from starters.evaluation.actions import methods, real_clips, samples, splits
from starters.evaluation.actions.samples import Floats, Moments
from starters.evaluation.actions.settings import ActionsSettings
from starters.evaluation.actions.splits import Views
from training.evaluation.settings import DataSplit

LART_NAME, SINGLE, NEAREST, LOGISTIC = "LART", "LART on single frames", "nearest pose", "logistic regression"
ENOUGH_RECORDINGS = 8
"""Unseen recordings from which a standard error over recordings is stated."""


def validation(source: MotionTracks, settings: ActionsSettings, network: LART, cache: Path, seed: int) -> dict[str, Any]:
    """Measurements that choices are made by, which are printed. Raises TrainingError."""
    asked = splits.recorded(DataSplit.VAL, source, settings, Views(settings.every, settings.cameras, seed), cache)
    found = table(asked, {LART_NAME: methods.lart(network, asked, source.settings.rate)}, source.labels)
    print("\n".join(_lines(found)))
    return {"recorded": found}


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    for row in found["classes"]:
        right, precision = row["accuracy"][LART_NAME], row["average_precision"][LART_NAME]
        yield f"{row['label']}, {row['moments']} moments, {100 * right:.0f} % right, average precision {precision:.2f}"
    yield f"{100 * found['accuracy'][LART_NAME]['value']:.1f} % right, mean average precision {found['map'][LART_NAME]:.3f}"


def measure(source: MotionTracks, settings: ActionsSettings, network: LART, single: LART, cache: Path, seed: int) -> dict[str, Any]:
    """Look at the test split. Raises DataError."""
    views = Views(settings.every, settings.cameras, seed)
    asked = splits.recorded(DataSplit.TEST, source, settings, views, cache)
    known = splits.trained(source, replace(views, seed=seed + 1))
    drawn = samples.of_training(source, settings.drawn, seed)
    labels, rate = source.labels, source.settings.rate

    def scores(these: Moments) -> dict[str, Floats]:
        return {
            LART_NAME: methods.lart(network, these, rate),
            SINGLE: methods.lart_on_single_frames(single, these),
            NEAREST: methods.nearest_pose(drawn, these, len(labels)),
            LOGISTIC: methods.logistic_statistics(drawn, these, len(labels)),
        }

    answers = scores(asked)
    return {
        "recordings": {
            "trained": [take.name for take in source.takes],
            "validation": [recording.name for recording in settings.validation],
            "unseen": [recording.name for recording in settings.held_out],
        },
        "standing_behind": standing_behind(source, settings),
        "cameras": settings.cameras,
        "unseen": table(asked, answers, labels),
        "known": table(known, scores(known), labels),
        "by_recording": _by_recording(asked, answers[LART_NAME]),
        "confusion": _confusion(asked, answers[LART_NAME], len(labels)),
        "clips": [real_clips.told(clip, network, source, cache) for clip in settings.clips],
    }


def standing_behind(source: MotionTracks, settings: ActionsSettings) -> list[dict[str, Any]]:
    """How many recordings show each class, of all splits. One with a single recording is unverified: nobody else was seen doing it."""
    named = [*source.settings.recordings, *settings.validation, *settings.held_out]
    rows = []
    for label in source.labels:
        count = sum(label in {part.label for part in one.parts} or (one.standing and label == STAND) for one in named)
        rows.append({"label": label, "recordings": count, "unverified": count < 2})
    return rows


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
