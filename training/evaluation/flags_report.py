"""Report of a model of flags: the `quality` of its bundle, with its ladder and the predictions for examples."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.merge_schedule import MergeSchedule
from models.spec import Preprocess
from models.vit.model import ViT
from training.data import pictures
from training.evaluation import metrics
from training.evaluation.flags import Comparison, Report
from training.evaluation.settings import FlagsQuality
from training.recipe import Recipe


def summary(recipe: Recipe, settings: FlagsQuality, report: Report, temperature: float) -> dict[str, Any]:
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


def examples(settings: FlagsQuality, network: ViT, preprocess: Preprocess, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """File name → predicted label and its score, merging off."""
    files: list[Path] = sorted(settings.examples.glob("*.png")) if settings.examples else []
    recorded = {}
    for file in files:
        pixels = pictures.to_model_size(pictures.open_on_white(file), preprocess)[np.newaxis]
        logits = torch.from_numpy(metrics.logits(network, pixels, preprocess, MergeSchedule.off()))[0]
        best = int(logits.argmax())
        recorded[file.name] = {"label": labels[best], "score": round(float(logits.softmax(dim=0)[best]), 4)}
    return recorded
