"""The part of a bundle's README that says how well it names instruments, and what does it better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from models.bundle import BundleSpec


def section(spec: BundleSpec) -> Iterator[str]:
    found, data = spec.quality["sounds"], spec.provenance["data"]
    primary = found["groups"][0]
    yield from (
        *(f"- {part}: {package['name']} {package['version']} ({package['license']})." for part, package in _packages(data)),
        "",
        f"Labels: {', '.join(spec.labels)}.",
        "",
        "## Quality",
        "",
        "Looked at once. The primary figure, fixed before training, is the share of the notes of a font by another maker,",
        f"{primary['name']}, whose best label is right: **{_percent(primary['top1'])}**. None of that font was trained on. ± is two",
        "standard errors over presets, keys of drums, or files: sounds of one of them are no independent tries. Gain is the accuracy of",
        "the network less the baseline's.",
        "",
        *_seen(found["groups"]),
        "| sounds | n | top 1 | top 5 | logistic regression | gain | nearest neighbour | gain | calibration error |",
        "|---|---|---|---|---|---|---|---|---|",
        *map(_row, found["groups"]),
        "",
        "Both baselines see the mean of a sound's log-mel spectrogram over time and learnt from sounds as the network was trained on.",
        "*In rooms* are the same notes with drawn equalisers, rooms, noise and levels. Of recorded samples all windows are heard, as the",
        "service does it. Confidence is calibrated on presets for choices: the weights of the head are divided by a temperature of",
        f"{found['temperature']:.3f}.",
        "",
        "### By class",
        "",
        f"| class | {' | '.join(map(_name, found['groups']))} |",
        f"|---|{'---|' * len(found['groups'])}",
        *(_class_row(label, found["groups"]) for label in spec.labels),
        "",
        f"Most frequent errors on {primary['name']}: "
        + "; ".join(f"{truth} taken for {called} ({count})" for truth, called, count in found["confusions"])
        + ".",
        "",
    )


def _packages(data: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for part, packages in data["packages"].items():
        for package in packages:
            yield part, package


def _seen(groups: list[Mapping[str, Any]]) -> Iterator[str]:
    if any(group.get("seen") for group in groups):
        yield "Sounds *seen* were the test of an earlier version: they are here for continuity, and nothing was chosen by them."
        yield ""


def _name(group: Mapping[str, Any]) -> str:
    return f"{group['name']}, *seen*" if group.get("seen") else str(group["name"])


def _row(group: Mapping[str, Any]) -> str:
    rivals = [_percent(row[name]) for row in group["baselines"].values() for name in ("accuracy", "gain")]
    cells = [str(group["top1"]["n"]), f"**{_percent(group['top1'])}**", _percent(group["top5"]), *rivals]
    return f"| {_name(group)} | {' | '.join(cells)} | {100 * group['calibration_error']:.1f} % |"


def _class_row(label: str, groups: list[Mapping[str, Any]]) -> str:
    cells = [f"{found[0]} of {found[1]}" if (found := group["classes"].get(label)) else "–" for group in groups]
    return f"| {label} | {' | '.join(cells)} |"


def _percent(measured: Mapping[str, float]) -> str:
    return f"{100 * measured['value']:.1f} ± {200 * measured['standard_error']:.1f} %"
