"""Accuracy on labelled images that were not trained on, and the ladder of a ViT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from models.merge_schedule import MergeSchedule
from models.systems.vit.model import ViT
from training import phase_runner
from training.data.registry import AnyData
from training.data.source import SampleSource, UnreadableSample
from training.errors import DataError, RecipeError
from training.evaluation import metrics
from training.evaluation.ladder import ladder, schedules
from training.evaluation.report import Measurement
from training.evaluation.settings import LadderSettings, QualitySettings
from training.evaluation.trained_classifier import TrainedNetwork
from training.recipe import Recipe


class HeldOutQuality(QualitySettings):
    """Accuracy on labelled images that were not trained on."""

    kind: Literal["held-out"] = "held-out"
    data: AnyData
    ladder: LadderSettings | None = None

    def check(self, recipe: Recipe, labels: Sequence[str], cache: Path) -> None:
        source(recipe.with_preprocess_of(recipe.released_phase), self, labels, cache)

    def planned_rungs(self) -> list[dict[str, Any]]:
        return self.ladder.to_json() if self.ladder else []

    def measure(self, trained: TrainedNetwork) -> Measurement:
        return measure(trained.network, source(trained.recipe, self, trained.labels, trained.cache), trained.labels, self.ladder)


def source(recipe: Recipe, settings: HeldOutQuality, labels: Sequence[str], cache: Path) -> SampleSource:
    """Open the data to evaluate on, without augmentation. `labels` are those of training. Raises TrainingError."""
    try:
        source = settings.data.open(phase_runner.preparation(recipe, None, cache))
    except DataError as error:
        raise DataError(f"release.quality.{error}") from error
    if source.labels != tuple(labels):
        raise RecipeError(f"release.quality.data: its labels are {', '.join(source.labels)}, those of training {', '.join(labels)}")
    return source


def measure(network: nn.Module, images: SampleSource, labels: Sequence[str], rungs: LadderSettings | None) -> Measurement:
    """Top-1 and top-5 accuracy, and the ladder. Raises RecipeError."""
    logits, targets = logits_of(network, images, MergeSchedule.off())
    best = logits.argmax(axis=1)
    quality: dict[str, Any] = {
        "test_accuracy": metrics.accuracy(best == targets).to_json(),
        "top5_accuracy": metrics.accuracy(metrics.top_k(logits, targets, min(5, len(labels)))).to_json(),
        "calibration_error": round(metrics.calibration_error(logits, targets), 5),
        "images": len(targets),
    }
    if rungs is None:
        return Measurement(quality)
    if not isinstance(network, ViT):
        raise RecipeError("release.quality.ladder: only tokens of architecture vit merge")
    accuracy = {}
    for name, schedule in schedules(rungs).items():
        logits, targets = logits_of(network, images, schedule)
        accuracy[name] = metrics.accuracy(logits.argmax(axis=1) == targets).value
    return Measurement(quality, *ladder(rungs, network, accuracy, accuracy))


@torch.inference_mode()
def logits_of(network: nn.Module, source: SampleSource, schedule: MergeSchedule, batch_size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (N, classes) and labels (N,) of all readable images."""
    scores: list[Tensor] = []
    targets: list[int] = []
    for start in range(0, len(source), batch_size):
        samples = []
        for index in range(start, min(start + batch_size, len(source))):
            try:
                samples.append(source.sample(index, 0))
            except UnreadableSample:
                continue
        if samples:
            pixels = torch.stack([sample["pixels"] for sample in samples])
            answer = network(pixels, merge=schedule) if isinstance(network, ViT) else network(pixels)
            scores.append(answer.logits)
            targets += [int(sample["label"]) for sample in samples]
    return torch.cat(scores).numpy(), np.array(targets)
