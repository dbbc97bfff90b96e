"""Evaluation of a flag classifier: by source, with and without merging, and against the nearest neighbour."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator

from models.arrays import Int64Array
from models.bundle_schema import Preprocess
from models.merge_schedule import MergeSchedule
from models.systems.vit.model import ViT
from starters.data.images import flag_augmentation, flags
from starters.data.images.flags import Corpus, FlagArtwork, Flags, Gallery, build
from starters.evaluation import baselines
from starters.evaluation.starter_quality import StarterQuality
from training.data import load_image
from training.data.load_image import RGBPixels
from training.errors import RecipeError
from training.evaluation import metrics
from training.evaluation.ladder import ladder, schedules
from training.evaluation.metrics import Right
from training.evaluation.report import Measurement, calibrate, round_weights
from training.evaluation.settings import LadderSettings
from training.evaluation.trained_classifier import TrainedNetwork
from training.shipped_files import Located

NEAREST = "nearest neighbour"
_VAL_RENDERINGS = 20


class FlagsQuality(StarterQuality):
    """Accuracy by source, against the nearest neighbour, and by rung."""

    kind: Literal["flags"] = "flags"
    ladder: LadderSettings
    examples: Located | None = None
    """Folder of images whose predictions the bundle records, so that its weights can be checked."""

    def needed_files(self) -> list[tuple[str, Path]]:
        return [("examples", self.examples)] if self.examples else []

    def planned_rungs(self) -> list[dict[str, Any]]:
        return self.ladder.to_json()

    def measure(self, trained: TrainedNetwork) -> Measurement:
        recipe, network = trained.recipe, trained.network
        data, preprocess = recipe.data, recipe.preprocess
        if not isinstance(data, Flags) or not isinstance(network, ViT) or preprocess is None:
            raise RecipeError("release.quality: kind flags is for a ViT on data of kind flags")
        task, corpus = FlagTask(data, preprocess, self.ladder, recipe.seed), build(data, trained.cache)
        degree = temperature(task, corpus, network)
        round_weights(calibrate(network, degree), recipe)
        found = measure(task, corpus, network)
        files = sorted(self.examples.glob("*.png")) if self.examples else []
        also = {
            "temperature": round(degree, 4),
            "examples": examples(files, network, preprocess, tuple(data.labels.values())),
        }
        return replace(
            found,
            quality=found.quality | also,
            data={
                "packages": [package.model_dump() for package in data.packages],
                "drawings": {"train": len(corpus.train), "val": len(corpus.val)},
                "test_pictures": {gallery.name: len(gallery.paths) for gallery in corpus.galleries},
            },
        )


@dataclass(frozen=True)
class FlagTask:
    """Data and settings of an evaluation."""

    flags: Flags
    preprocess: Preprocess
    ladder: LadderSettings
    seed: int


@dataclass(frozen=True)
class EvaluationImages:
    """Test or validation images of one source."""

    name: str
    pixels: RGBPixels
    labels: Int64Array
    thumbnails: RGBPixels
    """Images for the baselines, of clean ones cropped to the flag."""


def validation(task: FlagTask, corpus: Corpus) -> EvaluationImages:
    """Render held-out artwork, clean and distorted."""
    return _render("validation", corpus.val, task, _VAL_RENDERINGS, task.flags.clean)


def temperature(task: FlagTask, corpus: Corpus, model: ViT) -> float:
    """Return the temperature of the model's logits that fits validation images best."""
    val = validation(task, corpus)
    return metrics.fit_temperature(_logits(task, model, val), val.labels)


def measure(task: FlagTask, corpus: Corpus, model: ViT) -> Measurement:
    """Evaluate a model. Validation images choose the default rung."""
    clean = [_clean(gallery, task) for gallery in corpus.galleries]
    distorted = [
        _render(f"{gallery.name}, distorted", flags.cut_out(gallery, task.flags.side), task, 1, 0.0) for gallery in corpus.galleries
    ]
    all_clean, all_distorted = _pool("all, clean", clean), _pool("all, distorted", distorted)
    val, off = validation(task, corpus), MergeSchedule.off()
    artwork, artwork_labels = _on_white(corpus.train), corpus.train.targets.numpy()

    def right(images: EvaluationImages, schedule: MergeSchedule = off) -> Right:
        return np.asarray(_logits(task, model, images, schedule).argmax(axis=1) == images.labels)

    clean_right, distorted_right = right(all_clean), right(all_distorted)
    rows: dict[str, dict[str, Any]] = {}
    for name, schedule in schedules(task.ladder).items():
        merged, merged_distorted = right(all_clean, schedule), right(all_distorted, schedule)
        rows[name] = {
            "tokens_out": schedule.token_counts(model.config.patches + 1, model.config.depth, protected=1)[-1],
            "val_accuracy": metrics.accuracy(right(val, schedule)).to_json(),
            "test_accuracy": metrics.accuracy(merged).to_json(),
            "drop": metrics.difference(clean_right, merged).to_json(),
            "distorted_accuracy": metrics.accuracy(merged_distorted).to_json(),
            "distorted_drop": metrics.difference(distorted_right, merged_distorted).to_json(),
        }
    accuracy, by = ({name: row[on]["value"] for name, row in rows.items()} for on in ("test_accuracy", "val_accuracy"))
    rungs, default = ladder(task.ladder, model, accuracy, by)
    sources = (*clean, *distorted, all_clean, all_distorted)
    quality = {
        "test_accuracy": metrics.accuracy(clean_right).to_json(),
        "distorted_accuracy": metrics.accuracy(distorted_right).to_json(),
        "val_accuracy": metrics.accuracy(right(val)).to_json(),
        "sources": [_source(_logits(task, model, images), images, artwork, artwork_labels) for images in sources],
        "ladder": [{"rung": rung.name, "throughput": rung.throughput, **rows[rung.name]} for rung in rungs],
        "throughput": {
            "what": "forward passes relative to merging off, median of interleaved pairs",
            "batch_size": task.ladder.batch_size,
            "threads": 1,
            "dtype": "float32",
            "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        },
        "default_rung_chosen": f"best validation accuracy among rungs of at least {task.ladder.min_throughput}x throughput",
    }
    return Measurement(quality, rungs, default)


def examples(files: Sequence[Path], network: ViT, preprocess: Preprocess, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return predicted label and score, merging off, by file name."""
    recorded = {}
    for file in files:
        pixels = load_image.to_model_size(load_image.open_on_white(file), preprocess)[np.newaxis]
        logits = torch.from_numpy(metrics.logits(network, pixels, preprocess, MergeSchedule.off()))[0]
        best = int(logits.argmax())
        recorded[file.name] = {"label": labels[best], "score": round(float(logits.softmax(dim=0)[best]), 4)}
    return recorded


def _source(logits: npt.NDArray[np.float32], images: EvaluationImages, artwork: RGBPixels, artwork_labels: Int64Array) -> dict[str, Any]:
    """Return the scores on the images of one source."""
    right = np.equal(logits.argmax(axis=1), images.labels)
    nearest = baselines.nearest_neighbour(artwork, artwork_labels, images.thumbnails)
    return {
        "name": images.name,
        "top1": metrics.accuracy(right).to_json(),
        "top5": metrics.accuracy(metrics.top_k(logits, images.labels, 5)).to_json(),
        "calibration_error": round(metrics.calibration_error(logits, images.labels), 5),
        "baselines": {NEAREST: metrics.compare_with(right, np.equal(nearest, images.labels))},
    }


def _logits(task: FlagTask, model: ViT, images: EvaluationImages, schedule: MergeSchedule | None = None) -> npt.NDArray[np.float32]:
    return metrics.logits(model, images.pixels, task.preprocess, schedule or MergeSchedule.off())


def _clean(gallery: Gallery, task: FlagTask) -> EvaluationImages:
    pixels = load_image.load(gallery.paths, task.preprocess)
    return EvaluationImages(gallery.name, pixels, np.array(gallery.targets), _on_white(flags.cut_out(gallery, task.flags.side)))


def _render(name: str, drawings: FlagArtwork, task: FlagTask, renderings: int, clean: float) -> EvaluationImages:
    artwork = drawings.artwork.repeat(renderings, 1, 1, 1)
    rendered = flag_augmentation.render(artwork, task.preprocess.image_size, Generator().manual_seed(task.seed), clean)
    pixels = rendered.permute(0, 2, 3, 1).contiguous().numpy()
    return EvaluationImages(name, pixels, drawings.targets.repeat(renderings).numpy(), pixels)


def _on_white(drawings: FlagArtwork) -> RGBPixels:
    """Composite artwork over white: (N, T, T, 3)."""
    artwork = drawings.artwork.float()
    colours, alpha = artwork[:, :3], artwork[:, 3:] / 255
    return np.asarray((colours * alpha + 255 * (1 - alpha)).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy())


def _pool(name: str, parts: Sequence[EvaluationImages]) -> EvaluationImages:
    return EvaluationImages(
        name,
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.thumbnails for part in parts]),
    )
