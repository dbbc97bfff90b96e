"""The README of a bundle: what its `bundle.json` says, for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from models.bundle import BundleSpec
from training.evaluation.cards.figures import share, table

Sections = Callable[[BundleSpec], Iterator[str]]
"""Lines of a README."""


def describe_quality(spec: BundleSpec) -> Iterator[str]:
    yield from ("## Quality", "")
    if not spec.quality.keys() - {"remarks"}:
        yield from ("Nothing was measured. Measure it on data of your own before you rely on it.", "")
        return
    if "test_accuracy" not in spec.quality:
        yield from ("The field `quality` of `bundle.json` has what was measured.", "")
        return
    top5 = f", top 5 {share(spec.quality['top5_accuracy'], errors=1)}" if len(spec.labels) > 5 else ""  # else it is 100 % by definition
    yield from (
        f"On {spec.quality['images']} images that were not trained on: top 1 {share(spec.quality['test_accuracy'], errors=1)}{top5}",
        "(± is one standard error), expected calibration error (15 bins)",
        f"{100 * spec.quality['calibration_error']:.1f} %.",
        "",
    )


def render(spec: BundleSpec, quality: Sections = describe_quality) -> str:
    """Return the README, with `quality` as the section about measurements."""
    return "\n".join(line for part in (_general, quality, _rungs, _training) for line in part(spec))


_TASKS = {
    "classify": "labels an image with one of {classes} classes",
    "embed": "turns an image into a vector",
    "zero-shot": "compares images with texts",
    "inpaint": "fills holes of images",
    "autoencode": "reconstructs what is hidden of its input",
    "reconstruct": "reconstructs a shape from one image with depth",
    "actions": "recognises {classes} actions",
    "audio-visual": "labels a clip by sight and sound with {classes} classes",
    "body": "estimates people's bodies",
    "depth": "tells the depth of an object in an image, up to scale and shift",
    "pose": "finds people and their poses",
    "track": "follows people",
}


def _does(spec: BundleSpec) -> str:
    """Networks of clips have the task `actions`, whatever their labels name, and those of sound `audio-visual`."""
    if spec.task == "actions" and spec.clip:
        return "labels a clip with one of {classes} classes"
    return "labels a sound with one of {classes} classes" if spec.task == "audio-visual" and spec.clip is None else _TASKS[spec.task]


def _general(spec: BundleSpec) -> Iterator[str]:
    yield from (
        f"# {spec.name} {spec.version}",
        "",
        *([spec.description, ""] if spec.description else []),
        f"This model {_does(spec).format(classes=len(spec.labels))} (task `{spec.task}`, architecture `{spec.architecture}`).",
        "",
        f"- Made by `{spec.provenance['made_by']}` at revision {spec.provenance['revision']}.",
        f"- Licence: {spec.license}.",
        "",
    )
    if spec.labels:
        first_labels = ", ".join(spec.labels[:20])
        yield from (f"Labels: {first_labels}{f' and {len(spec.labels) - 20} more' if len(spec.labels) > 20 else ''}.", "")


def _rungs(spec: BundleSpec) -> Iterator[str]:
    if not spec.ladder:
        return
    yield from ("## Ladder", "")
    rows = ((r.name, f"`{r.schedule}`", f"{r.throughput or 0:.2f}x", f"{100 * (r.accuracy or 0):.1f} %") for r in spec.ladder)
    yield from table(("rung", "schedule", "throughput", "accuracy"), rows)
    yield from (f"Throughput is relative to merging off. Default rung: `{spec.default_rung or 'off'}`.", "")


def _training(spec: BundleSpec) -> Iterator[str]:
    yield from ("## Training", "", "![loss of each phase](training.svg)", "")
    yield from table(("phase", "objective", "epochs", "batch", "learning rate"), map(_phase, spec.provenance["recipe"]["phases"]))


def _phase(phase: Mapping[str, Any]) -> tuple[object, ...]:
    loop, optimiser = phase["loop"], phase["optimiser"]
    rate = f"{optimiser['lr']:g}" if optimiser["lr"] else f"{optimiser['base_lr']:g} for 256"
    return phase["name"], phase["objective"]["kind"], f"{loop['epochs']:g}", loop["batch_size"], rate
