"""The part of a model card that says how well actions are recognised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from models.bundle import BundleSpec
from training.evaluation.actions import plot
from training.evaluation.actions.measure import ENOUGH_RECORDINGS, QUIET
from training.evaluation.cards.figures import table

TOO_FEW = (
    "These are too few for errors to be stated: the figures tell what happened on these recordings, not how well a class is",
    "recognised in general.",
)


def section(spec: BundleSpec) -> Iterator[str]:
    actions = spec.quality["actions"]
    unseen, behind = actions["recordings"]["unseen"], actions["standing_behind"]
    authored = sum(row["authored"] for row in behind)
    yield from (
        "## Quality",
        "",
        f"Trained on {len(actions['recordings']['trained'])} recordings of motion capture and {authored} motions that were **authored, not",
        "recorded** (keyframes and inverse kinematics, by bodies and at tempos that are drawn), seen by virtual cameras: **few",
        f"recordings stand behind each class**. Measured on {len(unseen)} others ({', '.join(unseen)}), each moment from",
        f"{actions['cameras']} cameras.",
        *(() if len(unseen) >= ENOUGH_RECORDINGS else TOO_FEW),
        "",
        *_behind(behind),
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
    yield from _none(actions)
    yield from _classes("The recordings of training, from other cameras", actions["known"])
    yield from ("This tells that views generalise, nothing about other people. Classes without a row above were measured here alone.", "")
    yield from _classes("Authored motions, of other bodies and at other tempos", actions["authored"], "takes")
    yield from ("They are done as those of training are: this tells nothing about how people do them.", "")
    yield from _calibration(spec)
    for clip in actions["clips"]:
        yield from _clip(clip)


def _behind(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from (
        "A class is **unverified** where no second recording shows it: nobody else was seen doing it. Recordings are those of training, of",
        "validation and of the test together.",
        "",
    )
    cells = ((row["label"], row["recordings"], "yes" if row["authored"] else "", "unverified" if row["unverified"] else "") for row in rows)
    yield from table(("class", "recordings", "authored", ""), cells)


def _none(actions: Mapping[str, Any]) -> Iterator[str]:
    yield from (
        "### None of these",
        "",
        f"Moments that show none of the classes, and in how many of them no label scores more than {QUIET:g}.",
        "",
    )
    kinds = {"recorded": "unseen recordings, half a second or more from anything that was marked", "authored": "random walks of joints"}
    rows = ((what, actions["none"][kind]["moments"], _percent(actions["none"][kind]["quiet"])) for kind, what in kinds.items())
    yield from table(("moments", "", "no label"), rows)


def _calibration(spec: BundleSpec) -> Iterator[str]:
    hot = [f"{label} {by:.2f}" for label, by in zip(spec.labels, spec.quality["actions"]["temperatures"], strict=True) if round(by, 2) > 1]
    yield from (
        "### Calibration",
        "",
        "The logits of each label are divided by a temperature of at least 1, in the weights, that was fitted to moments of the validation",
        f"split and of the recordings of training, from other cameras. It is more than 1 for {', '.join(hot) or 'none'}.",
        "",
    )


def _classes(title: str, found: Mapping[str, Any], sources: str = "recordings") -> Iterator[str]:
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
    head = ("class", sources, "moments", *(f"{way}: right (AP)" for way in ways))
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
