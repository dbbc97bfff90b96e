"""Section of a README on the quality of instrument classification."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from models.bundle import BundleSpec
from starters.evaluation.sounds import LOGISTIC
from training.evaluation.cards.figures import share, table


def section(spec: BundleSpec) -> Iterator[str]:
    found, data = spec.quality["sounds"], spec.provenance["data"]
    groups = [group for group in found["groups"] if not group.get("seen")]  # of 1.1.0 also the tests of an earlier version
    primary = groups[0]
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
    yield from table(("sounds", "n", "top 1", "top 5", "logistic regression", "gain"), map(_format_row, groups))
    yield from (
        "Logistic regression sees the mean of a sound's log-mel spectrogram over time and learnt from sounds like the network's.",
        "*In rooms* are the same notes with drawn equalisers, rooms, noise and levels. Of recorded samples all windows are heard, as the",
        "service does it. Confidence is calibrated on presets for choices: the weights of the head are divided by a temperature of",
        f"{found['temperature']:.3f}.",
        "",
    )


def _format_row(group: Mapping[str, Any]) -> tuple[object, ...]:
    rival, top1 = group["baselines"][LOGISTIC], group["top1"]
    return group["name"], top1["n"], f"**{share(top1)}**", share(group["top5"]), share(rival["accuracy"]), share(rival["gain"])
