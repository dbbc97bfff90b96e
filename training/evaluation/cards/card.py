"""The README of a bundle: what its `bundle.json` says, for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from models.bundle import BundleSpec
from training.evaluation.cards import actions as recognising
from training.evaluation.cards import clips as clips_card
from training.evaluation.cards import depth as depth_card
from training.evaluation.cards import household as household_card
from training.evaluation.cards import inpainting as card
from training.evaluation.cards import naming as naming_card
from training.evaluation.cards import painting as painting_card
from training.evaluation.cards import reconstruction as shape_card
from training.evaluation.cards import restoring as restoring_card
from training.evaluation.cards import sounds as sounds_card
from training.evaluation.flags import LOGISTIC, NEAREST

_JUDGED: Mapping[str, Callable[[BundleSpec], Iterator[str]]] = {
    "actions": recognising.section,
    "clips": clips_card.section,
    "depth": depth_card.section,
    "household": household_card.section,
    "inpainting": card.section,
    "naming": naming_card.section,
    "painting": painting_card.section,
    "reconstruction": shape_card.section,
    "restoring": restoring_card.section,
    "sounds": sounds_card.section,
}
"""Measurement → the section of the README about it."""


def render(spec: BundleSpec) -> str:
    sections: tuple[Iterator[str], ...]
    if "sources" not in spec.quality:
        measured = next((section for kind, section in _JUDGED.items() if kind in spec.quality), _measured)(spec)
        sections = (_general(spec), measured, _rungs(spec), _training(spec))
        return "\n".join(line for section in sections for line in section)
    sections = (_head(spec), _accuracy(spec), _look_alikes(spec), _calibration(spec), _pretraining(spec), _ladder(spec))
    return "\n".join(line for section in sections for line in section)


def _head(spec: BundleSpec) -> Iterator[str]:
    data = spec.provenance["data"]
    packages = ", ".join(f"{package['name']} {package['version']}" for package in data["packages"])
    yield from (
        f"# {spec.name} {spec.version}",
        "",
        f"{spec.description}. It knows *drawn* flags: photographs are untested.",
        "",
        f"- Made by `{spec.provenance['made_by']}` at revision {spec.provenance['revision']}.",
        f"- Trained on {data['drawings']['train']} drawings by three designers, rendered under wind, perspective, light, blur, occlusion,",
        f"  clutter and noise without end; {data['drawings']['val']} further drawings are for validation.",
        "- Tested on flags that others drew. Pictures, and what is left out of them, were chosen without looking at predictions.",
        f"- Packages: {packages}.",
        f"- Licence: {spec.license}.",
        "",
    )


def _accuracy(spec: BundleSpec) -> Iterator[str]:
    yield from (
        "## Accuracy by source",
        "",
        "| pictures | n | top 1 | top 5 | nearest neighbour | better by | logistic regression | better by |",
        "|---|---|---|---|---|---|---|---|",
    )
    for source in spec.quality["sources"]:
        cells = [str(source["top1"]["n"]), f"**{_percent(source['top1'])}**", _percent(source["top5"])]
        for rival in (source["baselines"][NEAREST], source["baselines"][LOGISTIC]):
            cells += [_percent(rival["accuracy"]), _percent(rival["gain"])]
        yield f"| {source['name']} | {' | '.join(cells)} |"
    yield from (
        "",
        "± is one standard error; that of a difference is of the paired difference. Baselines see 32 x 32 pixels; of clean pictures only",
        "the flag, cut out for them along its transparent margin. The nearest neighbour is among the drawings that this model was trained",
        "on; logistic regression learnt from renderings of them. Distorted are renderings of the same pictures at random strength, none of",
        "them clean. The unfiltered clip art has maps, broken pictures and outdated designs; 'all' is without them.",
        "",
    )


def _look_alikes(spec: BundleSpec) -> Iterator[str]:
    yield from ("## Look-alikes", "", "| flags | clean pictures | right | right or one of the others |", "|---|---|---|---|")
    for row in spec.quality["look_alikes"]:
        yield f"| {', '.join(row['labels'])} | {row['n']} | {row['right']} | {row['within']} |"
    yield ""


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
        f"{_percent(clean['accuracy'])} on clean and {_percent(distorted['accuracy'])} on distorted pictures; pre-trained as a masked",
        f"autoencoder it is better by {_percent(clean['gain'])} and {_percent(distorted['gain'])}.",
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
        "| rung | schedule | tokens out | throughput | clean | below merging off by | distorted | below merging off by |",
        "|---|---|---|---|---|---|---|---|",
    )
    for rung, row in zip(spec.ladder, spec.quality["ladder"], strict=True):
        cells = [_percent(row[name]) for name in ("test_accuracy", "drop", "distorted_accuracy", "distorted_drop")]
        yield f"| {rung.name} | `{rung.schedule}` | {row['tokens_out']} | {row['throughput']:.2f}x | {' | '.join(cells)} |"
    yield ""


def _percent(measured: Mapping[str, Any]) -> str:
    return f"{100 * measured['value']:.1f} ± {100 * measured['standard_error']:.1f} %"


def _epochs(spec: BundleSpec) -> float:
    """Epochs of fine-tuning; recipes of version 1.0.0 had it as a section of its own."""
    recipe = spec.provenance["recipe"]
    if "finetune" in recipe:
        return int(recipe["finetune"]["epochs"])
    chosen = recipe["release"]["phase"]
    return next(float(phase["loop"]["epochs"]) for phase in recipe["phases"] if phase["name"] == chosen)


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
        shown = ", ".join(spec.labels[:20])
        yield from (f"Labels: {shown}{f' and {len(spec.labels) - 20} more' if len(spec.labels) > 20 else ''}.", "")


def _measured(spec: BundleSpec) -> Iterator[str]:
    yield from ("## Quality", "")
    if "test_accuracy" not in spec.quality:
        yield from ("Nothing was measured. Measure it on data of your own before you rely on it.", "")
        return
    top5 = f", top 5 {_percent(spec.quality['top5_accuracy'])}" if len(spec.labels) > 5 else ""  # else it is 100 % by definition
    yield from (
        f"On {spec.quality['images']} images that were not trained on: top 1 {_percent(spec.quality['test_accuracy'])}{top5}",
        "(± is one standard error), expected calibration error (15 bins)",
        f"{100 * spec.quality['calibration_error']:.1f} %.",
        "",
    )


def _rungs(spec: BundleSpec) -> Iterator[str]:
    if not spec.ladder:
        return
    yield from ("## Ladder", "", "| rung | schedule | throughput | accuracy |", "|---|---|---|---|")
    for rung in spec.ladder:
        yield f"| {rung.name} | `{rung.schedule}` | {rung.throughput or 0:.2f}x | {100 * (rung.accuracy or 0):.1f} % |"
    yield from ("", f"Throughput is relative to merging off. Default rung: `{spec.default_rung or 'off'}`.", "")


def _training(spec: BundleSpec) -> Iterator[str]:
    yield from (
        "## Training",
        "",
        "![loss of each phase](training.svg)",
        "",
        "| phase | objective | epochs | batch | learning rate |",
        "|---|---|---|---|---|",
    )
    for phase in spec.provenance["recipe"]["phases"]:
        loop, optimiser = phase["loop"], phase["optimiser"]
        rate = f"{optimiser['lr']:g}" if optimiser["lr"] else f"{optimiser['base_lr']:g} for 256"
        yield f"| {phase['name']} | {phase['objective']['kind']} | {loop['epochs']:g} | {loop['batch_size']} | {rate} |"
    yield ""
