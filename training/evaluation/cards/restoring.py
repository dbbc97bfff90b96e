"""The part of a bundle's README that says how well it restores halves of flags and emoji."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from models.bundle import BundleSpec
from training.evaluation.cards.figures import figure, packages, table


def section(spec: BundleSpec) -> Iterator[str]:
    yield from ("## Quality", "", f"Packages: {packages(spec.provenance['data'])}.", "")
    yield from told(spec.quality["restoring"])


def told(report: Mapping[str, Any]) -> Iterator[str]:
    yield from (
        "Flags of vendors none of whose flags was trained on, each without its left, right, upper and lower half. The primary figure,",
        "fixed before training: the share that the bundle `flags` names correctly once they are restored:",
        f"**{figure(report['flags']['restored']['value'], 1, unit=100)} %**.",
        "",
        f"{report['steps']} steps of ddim, temperature {report['temperature']:g}. ± is two standard errors over labels, or concepts, of",
        "the mean of their pictures; differences are paired.",
        "",
    )
    for title, rows in {"All flags": report["flags"], **report["sources"]}.items():
        yield from ways(title, "named correctly, %", rows, 100, 1)
    hidden = ", ".join(f"{half} {100 * share:.1f} %" for half, share in report["hidden"].items())
    yield from (f"Named correctly by the half that was hidden: {hidden}.", "")
    yield from ways("Emoji of held-out concepts", "perceptual distance (lower is better)", report["emoji"], 1, 4)


def ways(title: str, what: str, report: Mapping[str, Any], unit: float, digits: int, reference: str = "restored") -> Iterator[str]:
    """A table of each way, and of how much more than it the reference has."""
    rows = []
    for way, row in report.items():
        gain = row.get(f"{reference}_minus_this")
        rows.append((way, figure(row["value"], digits, unit=unit), figure(gain, digits, unit=unit, sign="+") if gain else ""))
    yield from (f"### {title}", "")
    yield from table(("way", what, f"{reference} minus this"), rows)
