"""The part of a bundle's README that says how well it restores halves of flags and emoji."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from models.bundle import BundleSpec


def section(spec: BundleSpec) -> Iterator[str]:
    packages = ", ".join(f"{package['name']} {package['version']}" for package in spec.provenance["data"]["packages"])
    yield from ("## Quality", "", f"Packages: {packages}.", "")
    yield from told(spec.quality["restoring"])


def told(report: Mapping[str, Any]) -> Iterator[str]:
    primary = report["flags"]["restored"]["value"]
    yield from (
        "Flags of vendors none of whose flags was trained on, each without its left, right, upper and lower half. The primary figure,",
        "fixed before training: the share that the bundle `flags` names correctly once they are restored:",
        f"**{figure(primary, 100, 1)} %**.",
        "",
        f"{report['steps']} steps of ddim, temperature {report['temperature']:g}. ± is two standard errors over labels, or concepts, of",
        "the mean of their pictures; differences are paired.",
        "",
    )
    for title, rows in {"All flags": report["flags"], **report["sources"]}.items():
        yield from table(title, "named correctly, %", rows, 100, 1)
    hidden = ", ".join(f"{half} {100 * share:.1f} %" for half, share in report["hidden"].items())
    yield from (f"Named correctly by the half that was hidden: {hidden}.", "")
    yield from table("Emoji of held-out concepts", "perceptual distance (lower is better)", report["emoji"], 1, 4)


def table(title: str, what: str, rows: Mapping[str, Any], unit: float, digits: int, reference: str = "restored") -> Iterator[str]:
    yield from (f"### {title}", "", f"| way | {what} | {reference} minus this |", "|---|---|---|")
    for way, row in rows.items():
        gain = row.get(f"{reference}_minus_this")
        yield f"| {way} | {figure(row['value'], unit, digits)} | {figure(gain, unit, digits, '+') if gain else ''} |"
    yield ""


def figure(measured: Mapping[str, float], unit: float, digits: int, sign: str = "") -> str:
    return f"{unit * measured['value']:{sign}.{digits}f} ± {2 * unit * measured['standard_error']:.{digits}f}"
