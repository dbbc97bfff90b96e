"""README of a flag classifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from models.bundle import BundleSpec
from starters.evaluation.flags import LOGISTIC, NEAREST
from training.evaluation.cards.figures import packages, share, table


def sections(spec: BundleSpec) -> Iterator[str]:
    for part in (_head, _accuracy, _look_alikes, _calibration, _pretraining, _ladder):
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
    rivals = (NEAREST, "better by", LOGISTIC, "better by")
    yield from table(("pictures", "n", "top 1", "top 5", *rivals), map(_cells, spec.quality["sources"]))
    yield from (
        "± is one standard error; that of a difference is of the paired difference. Baselines see 32 x 32 pixels; of clean pictures only",
        "the flag, cut out for them along its transparent margin. The nearest neighbour is among the drawings that this model was trained",
        "on; logistic regression learnt from renderings of them. Distorted are renderings of the same pictures at random strength, none of",
        "them clean. The unfiltered clip art has maps, broken pictures and outdated designs; 'all' is without them.",
        "",
    )


def _cells(source: Mapping[str, Any]) -> tuple[object, ...]:
    rivals = [_share(source["baselines"][name][of]) for name in (NEAREST, LOGISTIC) for of in ("accuracy", "gain")]
    return source["name"], source["top1"]["n"], f"**{_share(source['top1'])}**", _share(source["top5"]), *rivals


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


def _pretraining(spec: BundleSpec) -> Iterator[str]:
    compared, epochs = spec.quality["without_pretraining"], _epochs(spec)
    clean, distorted = compared["clean"], compared["distorted"]
    yield from (
        "## With and without pre-training",
        "",
        f"Fine-tuned for {compared['epochs']} epochs only, where this model had {epochs}, the same ViT without pre-training has",
        f"{_share(clean['accuracy'])} on clean and {_share(distorted['accuracy'])} on distorted pictures; pre-trained as a masked",
        f"autoencoder it is better by {_share(clean['gain'])} and {_share(distorted['gain'])}.",
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


def _epochs(spec: BundleSpec) -> float:
    """Return the epochs of fine-tuning; recipes of version 1.0.0 have a separate section for it."""
    recipe = spec.provenance["recipe"]
    if "finetune" in recipe:
        return int(recipe["finetune"]["epochs"])
    chosen = recipe["release"]["phase"]
    return next(float(phase["loop"]["epochs"]) for phase in recipe["phases"] if phase["name"] == chosen)


def _share(measured: Mapping[str, Any]) -> str:
    """Format a share with one standard error."""
    return share(measured, errors=1)
