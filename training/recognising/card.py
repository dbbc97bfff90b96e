"""The part of a model card that says how well actions are recognised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from models.bundle import BundleSpec
from training.recognising import plot
from training.recognising.measure import ENOUGH_RECORDINGS, LART_NAME, LOGISTIC, NEAREST, SINGLE

TOO_FEW = (
    "These are too few for errors to be stated: the figures tell what happened on these recordings, not how well a class is",
    "recognised in general.",
)
WAYS = (LART_NAME, SINGLE, NEAREST, LOGISTIC)


def section(spec: BundleSpec) -> Iterator[str]:
    actions = spec.quality["actions"]
    unseen = actions["recordings"]["unseen"]
    yield from (
        "## Quality",
        "",
        f"Trained on {len(actions['recordings']['trained'])} recordings of motion capture, seen by virtual cameras: **few recordings stand",
        f"behind each class**. Measured on {len(unseen)} others ({', '.join(unseen)}), each moment from {actions['cameras']} cameras.",
        *(() if len(unseen) >= ENOUGH_RECORDINGS else TOO_FEW),
        "",
    )
    yield from _table("Unseen recordings", actions["unseen"])
    yield from (
        "Right: share of a class's moments whose best score is right; AP: average precision. Nearest pose: the class of the nearest",
        "pose of training; logistic regression: on mean, spread and speed of each value over a second; both learn from tracks drawn as",
        "in training.",
        "",
        f"![confusion matrix]({plot.FILE})",
        "",
        "| recording | moments | right |",
        "|---|---|---|",
    )
    for row in actions["by_recording"]:
        yield f"| {row['recording']} | {row['moments']} | {_percent(row['accuracy'])} |"
    yield ""
    yield from _table("The recordings of training, from other cameras", actions["known"])
    yield from ("This tells that views generalise, nothing about other people. Classes without a row above were measured here alone.", "")
    for clip in actions["clips"]:
        yield from _clip(clip)


def _table(title: str, table: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"### {title}", "", f"| class | recordings | moments | {' | '.join(f'{way}: right (AP)' for way in WAYS)} |")
    yield f"|---|---|---|{'---|' * len(WAYS)}"
    for row in table["classes"]:
        cells = [f"{_percent(row['accuracy'][way])} ({row['average_precision'][way]:.2f})" for way in WAYS]
        yield f"| {row['label']} | {len(row['recordings'])} | {row['moments']} | {' | '.join(cells)} |"
    overall = [
        f"{_accuracy(table['accuracy'][way])}, mean of classes {_percent(table['mean_accuracy'][way])} (mAP {table['map'][way]:.2f})"
        for way in WAYS
    ]
    yield from (f"| **all** | | {table['moments']} | {' | '.join(overall)} |", "")


def _clip(clip: Mapping[str, Any]) -> Iterator[str]:
    yield from (
        f"### A real clip ({clip['clip']})",
        "",
        "Detected, tracked and read as in service; what was seen is somebody's note, and no picture is kept.",
        "",
        "| person | second | seen | said |",
        "|---|---|---|---|",
    )
    for person in clip["people"]:
        for row in person["seconds"]:
            said = ", ".join(f"{label['label']} {label['score']:.2f}" for label in row["told"])
            yield f"| {person['person']} | {row['second']} | {row['seen']} | {said} |"
    yield ""


def _accuracy(measured: Mapping[str, float]) -> str:
    error = measured.get("standard_error")
    return _percent(measured["value"]) if error is None else f"{100 * measured['value']:.0f} ± {100 * error:.0f} %"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"
