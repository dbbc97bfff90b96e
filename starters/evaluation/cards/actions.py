"""Section of a README on the quality of action recognition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from models.bundle import BundleSpec
from training.evaluation.cards.figures import table


def section(spec: BundleSpec) -> Iterator[str]:
    actions = spec.quality["actions"]
    measured, unseen = actions["unseen"], actions["recordings"]["unseen"]
    methods = list(measured["accuracy"])
    yield from (
        "## Quality",
        "",
        f"Trained on {len(actions['recordings']['trained'])} recordings of motion capture, seen by virtual cameras: **few recordings stand",
        f"behind each class**. Evaluated on {len(unseen)} others ({', '.join(unseen)}), each moment from {actions['cameras']} cameras.",
        "They are too few to give errors: the figures describe these recordings, not how well a class is recognised in general.",
        "",
    )
    head = ("class", "recordings", "moments", *(f"{method}: right (AP)" for method in methods))
    rows = [
        (row["label"], len(row["recordings"]), row["moments"], *_format_cells(row, "average_precision", methods))
        for row in measured["classes"]
    ]
    yield from table(head, (*rows, ("**all**", "", measured["moments"], *_format_cells(measured, "map", methods))))
    yield from (
        "Right: share of a class's moments whose best score is right; AP: average precision, for all classes its mean. Logistic regression",
        "learns from mean, spread and speed of each value over a second of tracks drawn as in training.",
        "",
    )


def _format_cells(row: Mapping[str, Any], precision: str, methods: list[str]) -> Iterator[str]:
    return (f"{100 * row['accuracy'][method]:.0f} % ({row[precision][method]:.2f})" for method in methods)
