"""README of a flag classifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from models.bundle import BundleSpec
from starters.evaluation.flags import NEAREST
from training.evaluation.cards.figures import packages, share, table


def sections(spec: BundleSpec) -> Iterator[str]:
    for part in (_head, _accuracy, _look_alikes, _calibration, _ladder):
        yield from part(spec)


def _head(spec: BundleSpec) -> Iterator[str]:
    data = spec.provenance["data"]
    yield from (
        f"# {spec.name} {spec.version}",
        "",
        f"{spec.description}. It knows *drawn* flags: photographs are untested.",
        "",
        f"- Made by `{spec.provenance['made_by']}` at revision {spec.provenance['revision']}.",
        f"- Trained on {data['drawings']['train']} drawings by three designers, rendered under wind, perspective, light, blur, occlusion,",
        f"  clutter and noise without end; {data['drawings']['val']} further drawings are for validation.",
        "- Tested on flags that others drew. Pictures, and what is left out of them, were chosen without looking at predictions.",
        f"- Packages: {packages(data)}.",
        f"- Licence: {spec.license}.",
        "",
    )


def _accuracy(spec: BundleSpec) -> Iterator[str]:
    yield from ("## Accuracy by source", "")
    yield from table(("pictures", "n", "top 1", "top 5", NEAREST, "better by"), map(_cells, spec.quality["sources"]))
    yield from (
        "± is one standard error; that of a difference is of the paired difference. The nearest neighbour is among the drawings that this",
        "model was trained on; it sees 32 x 32 pixels, of clean pictures only the flag, cut out along its transparent margin. Distorted",
        "are renderings of the same pictures at random strength, none of them clean. The unfiltered clip art has maps, broken pictures",
        "and outdated designs; 'all' is without them.",
        "",
    )


def _cells(source: Mapping[str, Any]) -> tuple[object, ...]:
    nearest = [_share(source["baselines"][NEAREST][of]) for of in ("accuracy", "gain")]
    return source["name"], source["top1"]["n"], f"**{_share(source['top1'])}**", _share(source["top5"]), *nearest


def _look_alikes(spec: BundleSpec) -> Iterator[str]:
    yield from ("## Look-alikes", "")
    rows = ((", ".join(row["labels"]), row["n"], row["right"], row["within"]) for row in spec.quality["look_alikes"])
    yield from table(("flags", "clean pictures", "right", "right or one of the others"), rows)


def _calibration(spec: BundleSpec) -> Iterator[str]:
    errors = ", ".join(f"{source['name']} {100 * source['calibration_error']:.1f} %" for source in spec.quality["sources"])
    yield from (
        "## Calibration",
        "",
        "Confidence is calibrated on validation pictures: the weights of the head are divided by a temperature of",
        f"{spec.quality['temperature']:.3f}.",
        f"Expected calibration error (15 bins): {errors}.",
        "",
    )


def _ladder(spec: BundleSpec) -> Iterator[str]:
    speed = spec.quality["throughput"]
    yield from (
        "## Ladder",
        "",
        f"Throughput is relative to merging off: batch {speed['batch_size']}, one thread, {speed['dtype']}.",
        f"Default rung: `{spec.default_rung}`, the {spec.quality['default_rung_chosen']}.",
        "",
    )
    measures = ("test_accuracy", "drop", "distorted_accuracy", "distorted_drop")
    rows = (
        (rung.name, f"`{rung.schedule}`", row["tokens_out"], f"{row['throughput']:.2f}x", *(_share(row[name]) for name in measures))
        for rung, row in zip(spec.ladder, spec.quality["ladder"], strict=True)
    )
    below = "below merging off by"
    yield from table(("rung", "schedule", "tokens out", "throughput", "clean", below, "distorted", below), rows)


def _share(measured: Mapping[str, Any]) -> str:
    """Format a share with one standard error."""
    return share(measured, errors=1)
