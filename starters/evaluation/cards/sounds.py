"""Section of a README on the quality of instrument classification."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from models.bundle import BundleSpec
from training.evaluation.cards.figures import share, table


def section(spec: BundleSpec) -> Iterator[str]:
    found, data = spec.quality["sounds"], spec.provenance["data"]
    groups, primary = found["groups"], found["groups"][0]
    yield from (
        *(
            f"- {part}: {package['name']} {package['version']} ({package['license']})."
            for part, packages in data["packages"].items()
            for package in packages
        ),
        "",
        f"Labels: {', '.join(spec.labels)}.",
        "",
        "## Quality",
        "",
        "Looked at once. The primary figure, fixed before training, is the share of the notes of a font by another maker,",
        f"{primary['name']}, whose best label is right: **{share(primary['top1'])}**. None of that font was trained on. ± is two",
        "standard errors over presets, keys of drums, or files: sounds of one of them are no independent tries. Gain is the accuracy of",
        "the network less the baseline's.",
        "",
    )
    if any(group.get("seen") for group in groups):
        yield from ("Sounds *seen* were the test of an earlier version: they are here for continuity, and nothing was chosen by them.", "")
    baselines = ("logistic regression", "gain", "nearest neighbour", "gain")
    yield from table(("sounds", "n", "top 1", "top 5", *baselines, "calibration error"), map(_cells, groups))
    yield from (
        "Both baselines see the mean of a sound's log-mel spectrogram over time and learnt from sounds as the network was trained on.",
        "*In rooms* are the same notes with drawn equalisers, rooms, noise and levels. Of recorded samples all windows are heard, as the",
        "service does it. Confidence is calibrated on presets for choices: the weights of the head are divided by a temperature of",
        f"{found['temperature']:.3f}.",
        "",
        "### By class",
        "",
    )
    yield from table(("class", *map(_name, groups)), ((label, *(_right(label, group) for group in groups)) for label in spec.labels))
    errors = "; ".join(f"{truth} taken for {called} ({count})" for truth, called, count in found["confusions"])
    yield from (f"Most frequent errors on {primary['name']}: {errors}.", "")


def _name(group: Mapping[str, Any]) -> str:
    return f"{group['name']}, *seen*" if group.get("seen") else str(group["name"])


def _cells(group: Mapping[str, Any]) -> tuple[object, ...]:
    rivals = [share(row[name]) for row in group["baselines"].values() for name in ("accuracy", "gain")]
    top1, calibration = group["top1"], f"{100 * group['calibration_error']:.1f} %"
    return _name(group), top1["n"], f"**{share(top1)}**", share(group["top5"]), *rivals, calibration


def _right(label: str, group: Mapping[str, Any]) -> str:
    return f"{found[0]} of {found[1]}" if (found := group["classes"].get(label)) else "–"
