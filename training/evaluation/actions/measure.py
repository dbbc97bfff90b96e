"""Measurements of a network of actions, as a bundle's `quality` says them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score

from models.lart.model import LART
from training.evaluation.actions import calibration, clips, moments, recognisers, splits
from training.evaluation.actions.moments import Floats, Moments
from training.evaluation.actions.splits import Views
from training.evaluation.settings import ActionsQuality, Split
from training.starters.people.motions import STAND, MotionTracks

LART_NAME, SINGLE, NEAREST, LOGISTIC = "LART", "LART on single frames", "nearest pose", "logistic regression"
ENOUGH_RECORDINGS = 8
"""Unseen recordings from which a standard error over recordings is stated."""
FITTED_SEED = 7
"""Added to the seed of cameras that temperatures are fitted by: they are others than those that anything is measured with."""
QUIET = 0.5
"""Score that no label should pass where none of the classes is shown."""


def validation(source: MotionTracks, settings: ActionsQuality, network: LART, cache: Path, seed: int) -> dict[str, Any]:
    """Measurements that choices are made by, which are printed. Raises DataError."""
    found = _of_split(Split.VAL, source, settings, network, Views(settings.every, settings.cameras, seed), cache)
    for kind, none in found["none"].items():
        print("\n".join(_lines(kind, found[kind])))
        print(f"{kind}: no label above {QUIET:g} in {100 * (none['quiet'] or 0):.1f} % of {none['moments']} moments without an action")
    return found


def _lines(kind: str, table: Mapping[str, Any]) -> Iterator[str]:
    for row in table["classes"]:
        right, precision = row["accuracy"][LART_NAME], row["average_precision"][LART_NAME]
        yield f"{kind}: {row['label']}, {row['moments']} moments, {100 * right:.0f} % right, average precision {precision:.2f}"
    yield f"{kind}: {100 * table['accuracy'][LART_NAME]['value']:.1f} % right, mean average precision {table['map'][LART_NAME]:.3f}"


def _of_split(split: Split, source: MotionTracks, settings: ActionsQuality, network: LART, views: Views, cache: Path) -> dict[str, Any]:
    """Tables of LART alone, and how often it keeps quiet."""
    asked = {
        "recorded": splits.recorded(split, source, settings, views, cache),
        "authored": splits.authored(split, source, settings, views),
    }
    found: dict[str, Any] = {"none": {}}
    for kind, these in asked.items():
        scores = recognisers.lart(network, these, source.settings.rate)
        found[kind] = table(these.labelled, {LART_NAME: scores[these.labels >= 0]}, source.labels)
        found["none"][kind] = quiet(scores[these.labels < 0])
    return found


def calibrate(source: MotionTracks, settings: ActionsQuality, network: LART, cache: Path, seed: int) -> list[float]:
    """Divide the logits of the network, in place, by a temperature for each label. Raises DataError."""
    asked = splits.for_choices(source, settings, Views(settings.every, settings.cameras, seed + FITTED_SEED), cache)
    by = calibration.temperatures(asked.labels, recognisers.lart(network, asked, source.settings.rate))
    calibration.cool(network, by)
    return by


def measure(source: MotionTracks, settings: ActionsQuality, network: LART, single: LART, cache: Path, seed: int) -> dict[str, Any]:
    """Look at the test split. Raises DataError."""
    views = Views(settings.every, settings.cameras, seed)
    asked = splits.recorded(Split.TEST, source, settings, views, cache)
    known = splits.trained(source, replace(views, seed=seed + 1)).labelled
    drawn = moments.of_training(source, settings.drawn, seed).labelled
    labels, rate = source.labels, source.settings.rate

    def scores(these: Moments) -> dict[str, Floats]:
        return {
            LART_NAME: recognisers.lart(network, these, rate),
            SINGLE: recognisers.lart_on_single_frames(single, these),
            NEAREST: recognisers.nearest_pose(drawn, these, len(labels)),
            LOGISTIC: recognisers.logistic_statistics(drawn, these, len(labels)),
        }

    shown = asked.labelled
    answers = scores(shown)
    split = _of_split(Split.TEST, source, settings, network, views, cache)
    return {
        "recordings": {
            "trained": [take.name for take in source.takes if take.recorded],
            "validation": [recording.name for recording in settings.validation],
            "unseen": [recording.name for recording in settings.held_out],
        },
        "standing_behind": standing_behind(source, settings),
        "cameras": settings.cameras,
        "unseen": table(shown, answers, labels),
        "none": split["none"],
        "authored": split["authored"],
        "validation": _of_split(Split.VAL, source, settings, network, views, cache),
        "known": table(known, scores(known), labels),
        "by_recording": _by_recording(shown, answers[LART_NAME]),
        "confusion": _confusion(shown, answers[LART_NAME], len(labels)),
        "clips": [clips.told(clip, network, source, cache) for clip in settings.clips],
    }


def standing_behind(source: MotionTracks, settings: ActionsQuality) -> list[dict[str, Any]]:
    """How many recordings show each class, of all splits, and whether it was authored. One with a single recording or none is unverified:
    nobody else was seen doing it."""
    given = source.settings
    named = [*given.recordings, *settings.validation, *settings.held_out]
    rows = []
    for label in source.labels:
        count = sum(label in {part.label for part in one.parts} or (one.standing and label == STAND) for one in named)
        rows.append(
            {
                "label": label,
                "recordings": count,
                "authored": bool(given.authored and label in given.authored.motions),
                "unverified": count < 2,
            }
        )
    return rows


def quiet(scores: Floats) -> dict[str, Any]:
    """In how many of moments (N, labels) without an action no label scores more than `QUIET`."""
    return {"moments": len(scores), "quiet": _rounded((scores.max(axis=1) <= QUIET).mean()) if len(scores) else None}


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
