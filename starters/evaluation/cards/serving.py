"""Section of a README on the service's inpainting methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import starmap
from typing import Any

from models.bundle_schema import FillRule
from training.evaluation.cards.figures import table


def section(served: Mapping[str, Any], rules: list[FillRule]) -> Iterator[str]:
    """Yield the section. served: results of `python -m benchmarks.fillings`."""
    yield from (
        "## As it is served",
        "",
        "Printed by `python -m benchmarks.fillings`: every method of the service with its usual options (10 steps, no noise), OpenCV's,",
        "and `auto` by the rules of this bundle, on the same holes: boxes of 10 to 25 % of the area, and strokes. The drawings are the",
        "held-out ones of the tables below; the photographs are crops of 256 pixels of nine files of budgie-backgrounds 3.0-1 (CC0):",
        f"{', '.join(served['files'])}. The rules were chosen on",
        "other drawings and on the other nine files, by other features.",
        "",
        "Perceptual distance is in features of EfficientNet-Lite2, which nothing was trained on or chosen by (lower is better); ± is two",
        "standard errors. *Against auto* is the paired difference: above 0 `auto` is better. *Seam* is the mean difference of neighbouring",
        "pixels across the hole's edge ÷ that of the truth; *gradient* the same inside the hole (1 is right, less is blurred).",
        "",
    )
    yield from tables(served, rules)


def tables(served: Mapping[str, Any], rules: list[FillRule]) -> Iterator[str]:
    yield from (f"Rules of `auto`: {'; '.join(map(_rule, rules)) or 'none, so it is the network'}.", "")
    for title, group in served["groups"].items():
        chosen = ", ".join(f"{method} {count}" for method, count in group["chosen"].items() if count)
        yield from (f"### {title.capitalize()}", "", f"{group['pictures']} holes; `auto` took: {chosen}.", "")
        best_first = sorted(group["rows"].items(), key=lambda item: item[1]["perceptual"])
        head = ("filled by", "perceptual distance", "against auto", "seam", "gradient")
        yield from table(head, starmap(_cells, best_first))


def _cells(name: str, row: Mapping[str, float]) -> tuple[str, ...]:
    distance = f"{row['perceptual']:.4f} ± {row['error']:.4f}"
    return name, distance, f"{row['minus_auto']:+.4f} ± {row['minus_auto_error']:.4f}", f"{row['seam']:.2f}", f"{row['gradient']:.2f}"


def _rule(rule: FillRule) -> str:
    holes = "any hole" if rule.thickness is None else f"holes at most {rule.thickness} pixels thick"
    crops = "" if rule.side is None else f" in crops of at most {rule.side} pixels"
    return f"`{rule.method}` for {holes}{crops}"
