"""Measurements of a finished network, as a bundle's `quality`, ladder and provenance say them."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.lart.model import LART
from models.mavil.model import MAViL
from models.merge_schedule import MergeSchedule
from models.spec import Preprocess, Rung
from models.vit.model import ViT
from training import goal, phases
from training.data import pictures
from training.data.base import Source, Unreadable
from training.data.registry import open_source
from training.errors import RecipeError, TrainingError
from training.evaluation import flags as measure
from training.evaluation import metrics
from training.evaluation.actions import measure as recognising
from training.evaluation.filling import inpainting as judge
from training.evaluation.filling.report import summary
from training.evaluation.flags import Comparison, Report, Task
from training.evaluation.reconstruction import shape_report, shapes
from training.evaluation.settings import (
    ActionsQuality,
    FlagsQuality,
    HeldOutQuality,
    InpaintingQuality,
    LadderSettings,
    ReconstructionQuality,
    Split,
)
from training.fingerprint import sha256_of_weights
from training.phases import Workshop
from training.recipe import Recipe
from training.settings import Settings
from training.starters.images import flags
from training.starters.people import motions
from training.starters.renders.scenes import RenderedScenes


@dataclass(frozen=True)
class Measurement:
    quality: dict[str, Any] = field(default_factory=dict)
    ladder: list[Rung] = field(default_factory=list)
    default_rung: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    """For the provenance."""


def rounded(network: nn.Module) -> nn.Module:
    """The network with its weights as a bundle stores them, float16: what is measured is what is shipped."""
    return network.half().float().eval()


def of_flags(recipe: Recipe, settings: FlagsQuality, network: nn.Module, shop: Workshop) -> Measurement:
    """Calibrates the network in place, then measures it. Raises TrainingError."""
    data, preprocess = recipe.data, recipe.preprocess
    if not isinstance(data, flags.Flags) or not isinstance(network, ViT) or preprocess is None:
        raise RecipeError("release.quality: kind flags is for a ViT on data of kind flags")
    task, corpus = Task(data, preprocess, settings.ladder, recipe.seed), flags.build(data, shop.cache)
    labels = tuple(data.labels.values())
    short, scratch = (
        _vit(phases.trained_network(recipe, name, labels, shop)) for name in (settings.with_pretraining, settings.without_pretraining)
    )
    temperature = measure.temperature(task, corpus, network)
    rounded(calibrated(network, temperature))
    report = measure.measure(task, corpus, network, short, scratch)
    return Measurement(
        quality=_flags_quality(recipe, settings, report, temperature) | {"examples": _examples(settings, network, preprocess, labels)},
        ladder=[
            Rung(name=r.name, schedule=r.schedule.to_json(), accuracy=round(r.clean.value, 5), throughput=round(r.throughput, 3))
            for r in report.ladder
        ],
        default_rung=report.default.name if report.default else None,
        data={
            "packages": [package.model_dump() for package in data.packages],
            "drawings": {"train": len(corpus.train), "val": len(corpus.val)},
            "test_pictures": {gallery.name: len(gallery.paths) for gallery in (*corpus.galleries, corpus.unfiltered)},
        },
    )


def _vit(network: nn.Module) -> ViT:
    assert isinstance(network, ViT)
    rounded(network)
    return network


def calibrated(network: ViT | MAViL, temperature: float) -> nn.Module:
    """The network with its head's weights divided by `temperature`: its confidence changes, its predictions do not."""
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.div_(temperature)
    return network


def of_held_out(recipe: Recipe, settings: HeldOutQuality, network: nn.Module, labels: Sequence[str], shop: Workshop) -> Measurement:
    """Top-1 and top-5 accuracy, and the ladder if the recipe has one. Raises TrainingError."""
    source = goal.held_out(recipe, settings, labels, shop.cache)
    rounded(network)
    logits, targets = logits_of(network, source, MergeSchedule.off())
    best = logits.argmax(axis=1)
    quality: dict[str, Any] = {
        "test_accuracy": metrics.accuracy(best == targets).to_json(),
        "top5_accuracy": metrics.accuracy(metrics.top_k(logits, targets, min(5, len(labels)))).to_json(),
        "calibration_error": round(metrics.calibration_error(logits, targets), 5),
        "images": len(targets),
    }
    if settings.ladder is None:
        return Measurement(quality)
    if not isinstance(network, ViT):
        raise RecipeError("release.quality.ladder: only tokens of architecture vit merge")
    rungs = _rungs(settings.ladder, network, source, best == targets)
    fast = [rung for rung in rungs if (rung.throughput or 0) >= settings.ladder.min_throughput]
    default = max(fast, key=lambda rung: (rung.accuracy or 0, rung.throughput or 0), default=None)
    return Measurement(quality, rungs, default.name if default else None)


def of_actions(recipe: Recipe, settings: ActionsQuality, network: nn.Module, shop: Workshop) -> Measurement:
    """Calibrates the network in place, then looks at the test split, or at what was written when it was looked at. Raises TrainingError."""
    source, calibrated, temperatures = calibrated_actions(recipe, settings, network, shop)
    single = rounded(phases.trained_network(recipe, settings.single_frames, source.labels, shop))
    assert isinstance(single, LART)
    judged = weights_and_settings(settings, calibrated)
    report = looked_at_once(
        judged_file(shop, "actions", Split.TEST),
        judged,
        lambda: recognising.measure(source, settings, calibrated, single, shop.cache, recipe.seed),
    )
    actions = {name: value for name, value in report.items() if name != "judged"} | {"temperatures": temperatures}
    packages = [*source.settings.packages.pypi.values(), *source.settings.packages.debian.values()]
    named = [{"name": package.name, "version": package.version, "sha256": package.sha256} for package in packages]
    return Measurement(quality={"actions": actions}, data={"kind": source.settings.kind, "packages": named})


def calibrated_actions(
    recipe: Recipe, settings: ActionsQuality, network: nn.Module, shop: Workshop
) -> tuple[motions.MotionTracks, LART, list[float]]:
    """The data of the network, and the network, calibrated in place by a temperature for each label. Raises TrainingError."""
    source = phases.source_of(recipe, goal.released_phase(recipe), shop.cache)
    if not isinstance(source, motions.MotionTracks) or not isinstance(network, LART):
        raise RecipeError("release.quality: kind actions is for a LART on data of kind motions")
    rounded(network)
    temperatures = recognising.calibrate(source, settings, network, shop.cache, recipe.seed)
    rounded(network)
    return source, network, temperatures


def looked_at_once(file: Path, judged: dict[str, str], look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The report of a look at a test split, written to `file`. For the same weights and settings it is read again, others are refused.
    Raises TrainingError."""
    if file.is_file():
        known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if known["judged"] != judged:
            raise TrainingError(f"{file}: the test split was looked at with other weights or settings; choose by the validation split")
        return known
    return write_report(file, {"judged": judged, **look()})


def write_report(file: Path, report: dict[str, Any]) -> dict[str, Any]:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def of_inpainting(recipe: Recipe, settings: InpaintingQuality, network: nn.Module, shop: Workshop) -> Measurement:
    """How well holes are filled. What `python -m training.evaluation` scored before is not scored again. Raises TrainingError."""
    contest = judge.prepare(recipe, rounded(network), shop)
    trained_on = open_source(recipe.data, phases.preparation(recipe, None, shop.cache))
    return Measurement(
        summary(contest, judge.run(contest)),
        data={
            "packages": [settings.data.package.model_dump()],
            "drawings": {"train": len(trained_on), "test": len(contest.drawings)},
            "distances_in": settings.features.model_dump(),
        },
    )


def of_reconstruction(recipe: Recipe, settings: ReconstructionQuality, network: nn.Module, shop: Workshop) -> Measurement:
    """Calibrates the network's occupancy in place, then measures reconstructions. What `python -m training.evaluation` scored before is not
    scored again. Raises TrainingError."""
    contest = shapes.prepare(recipe, rounded(network), shop)
    threshold, depth = shapes.calibrate(contest)
    trained_on = open_source(recipe.data, phases.preparation(recipe, None, shop.cache))
    assert isinstance(trained_on, RenderedScenes)
    return Measurement(
        shape_report.summary(contest, shapes.run(contest, depth), threshold, depth),
        data={
            "packages": [entry.package.model_dump() | {"license": entry.license} for entry in trained_on.settings.packages],
            "objects": dict(Counter(trained_on.categories.values())),
            "views": len(trained_on),
        },
    )


def judged_file(shop: Workshop, kind: str, split: Split) -> Path:
    return shop.runs / judge.FOLDER / f"{kind}-{split.value}.json"


def weights_and_settings(settings: Settings, network: nn.Module) -> dict[str, str]:
    """Digests of what was judged, by which a second look is told from another one."""
    return {"weights": sha256_of_weights(network.state_dict()), "settings": sha256(settings.model_dump_json().encode()).hexdigest()}


def _rungs(settings: LadderSettings, network: ViT, source: Source, unmerged: metrics.Right) -> list[Rung]:
    schedules = {rung.name: MergeSchedule.parse(rung.schedule) for rung in settings.rungs}
    speed = metrics.relative_throughput(network, schedules, batch_size=settings.batch_size, rounds=settings.rounds)
    rungs = []
    for name, schedule in schedules.items():
        logits, targets = logits_of(network, source, schedule)
        accuracy = metrics.accuracy(logits.argmax(axis=1) == targets)
        rungs.append(Rung(name=name, schedule=schedule.to_json(), accuracy=round(accuracy.value, 5), throughput=round(speed[name], 3)))
    return rungs


@torch.inference_mode()
def logits_of(network: nn.Module, source: Source, schedule: MergeSchedule, batch_size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """→ (N, classes) and (N,). Unreadable images are left out."""
    scores: list[Tensor] = []
    targets: list[int] = []
    for start in range(0, len(source), batch_size):
        samples = []
        for index in range(start, min(start + batch_size, len(source))):
            try:
                samples.append(source.sample(index, 0))
            except Unreadable:
                continue
        if samples:
            pixels = torch.stack([sample["pixels"] for sample in samples])
            answer = network(pixels, merge=schedule) if isinstance(network, ViT) else network(pixels)
            scores.append(answer.logits)
            targets += [int(sample["label"]) for sample in samples]
    return torch.cat(scores).numpy(), np.array(targets)


def _flags_quality(recipe: Recipe, settings: FlagsQuality, report: Report, temperature: float) -> dict[str, Any]:
    epochs = {phase.name: phase.loop.epochs for phase in recipe.phases}
    return {
        "test_accuracy": report.clean.to_json(),
        "distorted_accuracy": report.distorted.to_json(),
        "val_accuracy": report.val.to_json(),
        "temperature": round(temperature, 4),
        "sources": [
            {
                "name": source.name,
                "top1": source.top1.to_json(),
                "top5": source.top5.to_json(),
                "calibration_error": round(source.calibration_error, 5),
                "baselines": {name: _comparison(rival) for name, rival in source.rivals.items()},
            }
            for source in report.sources
        ],
        "look_alikes": [dataclasses.asdict(row) for row in report.look_alikes],
        "without_pretraining": {
            "epochs": epochs[settings.without_pretraining],
            **{kind: _comparison(rival) for kind, rival in report.pretraining.items()},
        },
        "ladder": [
            {
                "rung": r.name,
                "tokens_out": r.tokens_out,
                "throughput": round(r.throughput, 3),
                "val_accuracy": r.val.to_json(),
                "test_accuracy": r.clean.to_json(),
                "drop": r.clean_drop.to_json(),
                "distorted_accuracy": r.distorted.to_json(),
                "distorted_drop": r.distorted_drop.to_json(),
            }
            for r in report.ladder
        ],
        "throughput": {
            "what": "forward passes relative to merging off, median of interleaved pairs",
            "batch_size": settings.ladder.batch_size,
            "threads": 1,
            "dtype": "float32",
            "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        },
        "default_rung_chosen": f"best validation accuracy among rungs of at least {settings.ladder.min_throughput}x throughput",
    }


def _comparison(rival: Comparison) -> dict[str, dict[str, float]]:
    return {"accuracy": rival.accuracy.to_json(), "gain": rival.gain.to_json()}


def _examples(settings: FlagsQuality, network: ViT, preprocess: Preprocess, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """File name → predicted label and its score, merging off."""
    files: list[Path] = sorted(settings.examples.glob("*.png")) if settings.examples else []
    recorded = {}
    for file in files:
        pixels = pictures.to_model_size(pictures.open_on_white(file), preprocess)[np.newaxis]
        logits = torch.from_numpy(metrics.logits(network, pixels, preprocess, MergeSchedule.off()))[0]
        best = int(logits.argmax())
        recorded[file.name] = {"label": labels[best], "score": round(float(logits.softmax(dim=0)[best]), 4)}
    return recorded
