"""Section of a README on the quality of action recognition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from models.bundle import BundleSpec
from starters.evaluation.actions import plot
from starters.evaluation.actions.measure import MIN_RECORDINGS
from training.evaluation.cards.figures import table

TOO_FEW = (
    "These are too few for errors to be stated: the figures tell what happened on these recordings, not how well a class is",
    "recognised in general.",
)


def section(spec: BundleSpec) -> Iterator[str]:
    actions = spec.quality["actions"]
    unseen = actions["recordings"]["unseen"]
    yield from (
        "## Quality",
        "",
        f"Trained on {len(actions['recordings']['trained'])} recordings of motion capture, seen by virtual cameras: **few recordings stand",
        f"behind each class**. Measured on {len(unseen)} others ({', '.join(unseen)}), each moment from {actions['cameras']} cameras.",
        *(() if len(unseen) >= MIN_RECORDINGS else TOO_FEW),
        "",
        *_behind(actions["standing_behind"]),
    )
    yield from _classes("Unseen recordings", actions["unseen"])
    yield from (
        "Right: share of a class's moments whose best score is right; AP: average precision. Nearest pose: the class of the nearest",
        "pose of training; logistic regression: on mean, spread and speed of each value over a second; both learn from tracks drawn as",
        "in training.",
        "",
        f"![confusion matrix]({plot.FILE})",
        "",
    )
    recordings = ((row["recording"], row["moments"], _percent(row["accuracy"])) for row in actions["by_recording"])
    yield from table(("recording", "moments", "right"), recordings)
    yield from _classes("The recordings of training, from other cameras", actions["known"])
    yield from ("This tells that views generalise, nothing about other people. Classes without a row above were measured here alone.", "")
    for clip in actions["clips"]:
        yield from _clip(clip)


def _behind(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from (
        "A class is **unverified** where no second recording shows it: nobody else was seen doing it. Recordings are those of training, of",
        "validation and of the test together.",
        "",
    )
    cells = ((row["label"], row["recordings"], "unverified" if row["unverified"] else "") for row in rows)
    yield from table(("class", "recordings", ""), cells)


def _classes(title: str, found: Mapping[str, Any]) -> Iterator[str]:
    ways = list(found["accuracy"])
    rows = [
        (
            row["label"],
            len(row["recordings"]),
            row["moments"],
            *(f"{_percent(row['accuracy'][way])} ({row['average_precision'][way]:.2f})" for way in ways),
        )
        for row in found["classes"]
    ]
    overall = [
        f"{_accuracy(found['accuracy'][way])}, mean of classes {_percent(found['mean_accuracy'][way])} (mAP {found['map'][way]:.2f})"
        for way in ways
    ]
    yield from (f"### {title}", "")
    head = ("class", "recordings", "moments", *(f"{way}: right (AP)" for way in ways))
    yield from table(head, (*rows, ("**all**", "", found["moments"], *overall)))


def _clip(clip: Mapping[str, Any]) -> Iterator[str]:
    yield from (
        f"### A real clip ({clip['clip']})",
        "",
        "Detected, tracked and read as in service; what was seen is somebody's note, and no picture is kept.",
        "",
    )
    seconds = (
        (person["person"], row["second"], row["seen"], ", ".join(f"{label['label']} {label['score']:.2f}" for label in row["told"]))
        for person in clip["people"]
        for row in person["seconds"]
    )
    yield from table(("person", "second", "seen", "said"), seconds)


def _accuracy(measured: Mapping[str, float]) -> str:
    error = measured.get("standard_error")
    return _percent(measured["value"]) if error is None else f"{100 * measured['value']:.0f} ± {100 * error:.0f} %"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"
