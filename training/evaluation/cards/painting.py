"""The part of a bundle's README that says how well it fills holes of drawings and photographs, and restores flags."""

from __future__ import annotations

from collections.abc import Iterator

from models.bundle import BundleSpec
from training.evaluation.cards import restoring, served
from training.evaluation.cards.figures import creators, figure, packages
from training.evaluation.filling.painting import HOLES
from training.evaluation.filling.restoring import PATCHMATCH

_WHAT = "perceptual distance (lower is better)"


def section(spec: BundleSpec) -> Iterator[str]:
    report, data = spec.quality["painting"], spec.provenance["data"]
    first = {kind: report[kind][PATCHMATCH]["network_minus_this"] for kind in report["holes"]}
    told = "; ".join(f"{kind} **{figure(gain, 4, sign='+')}**" for kind, gain in first.items())
    target = spec.provenance["recipe"]["release"]["quality"]["target"]
    yield from (
        "## Data",
        "",
        f"Packages of training and judging: {packages(data)}.",
        "",
        *creators(data, "Textures under {license} are"),
        "",
        "## Quality",
        "",
        "Boxes and strokes are filled in held-out drawings, one of each series, and in crops of held-out photographs, reduced to this",
        "network's size. Perceptual distance is in features of EfficientNet-Lite2, which nothing was trained on; ± is two",
        "standard errors, over drawings and over photographs; differences are paired. The primary figures, fixed before training, are the",
        f"network's distance minus that of PatchMatch: {told}. The target, at most {target:g} on both and below zero by two",
        f"standard errors, is {'met' if report['met'] else 'missed, so `auto` fills holes with patches of the image'}.",
        "",
        f"{report['steps']} steps of ddim, temperature {report['temperature']:g}; without the blending of the service.",
        "",
    )
    for kind, holes in report["holes"].items():
        for hole in HOLES:
            yield from restoring.ways(f"{kind.capitalize()}, {hole.value}", _WHAT, holes[hole.value], 1, 4, "network")
        yield from restoring.ways(f"{kind.capitalize()}, both", _WHAT, report[kind], 1, 4, "network")
    if "served" in spec.quality:
        yield from ("## As it is served", "", "Printed by `python -m benchmarks.fillings`, on the same drawings and photographs.", "")
        yield from served.tables(spec.quality["served"], spec.fill)
    yield from ("## Restored flags", "")
    yield from restoring.told(report["restoring"])
