"""Measurements: accuracy with its standard error, paired differences, and throughput as a ratio within one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch

from models.bundle import Preprocess
from models.layers.forward import normalise
from models.merge_schedule import MergeSchedule
from models.vit.model import ViT
from training.data.pictures import Pixels

Right = npt.NDArray[np.bool_]
"""(N,) whether each picture's prediction was right."""


@dataclass(frozen=True)
class Measured:
    """A mean over n pictures with its standard error."""

    value: float
    standard_error: float
    n: int

    def to_json(self) -> dict[str, float]:
        return {name: round(number, 5) for name, number in asdict(self).items()}


def accuracy(right: Right) -> Measured:
    return _mean(right.astype(np.float64))


def difference(right: Right, other: Right) -> Measured:
    """Accuracy of `right` minus that of `other` on the same pictures; the error is that of the paired difference."""
    return _mean(right.astype(np.float64) - other.astype(np.float64))


def _mean(values: npt.NDArray[np.float64]) -> Measured:
    return Measured(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))), len(values))


@torch.inference_mode()
def logits(model: ViT, pixels: Pixels, preprocess: Preprocess, schedule: MergeSchedule, batch_size: int = 64) -> npt.NDArray[np.float32]:
    """pixels (N, S, S, 3) → (N, classes)."""
    batches = torch.split(torch.from_numpy(pixels), batch_size)
    scores = [model(normalise(batch, preprocess, torch.float32), merge=schedule).logits for batch in batches]
    return np.asarray(torch.cat(scores).numpy())


@torch.inference_mode()
def relative_throughput(model: ViT, schedules: Mapping[str, MergeSchedule], *, batch_size: int, rounds: int) -> dict[str, float]:
    """How many times faster than merging off each schedule is: on one thread, in alternation with merging off, the median of `rounds`."""
    side = model.config.image_size
    pixels = torch.rand(batch_size, 3, side, side)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def seconds(schedule: MergeSchedule) -> float:
        began = time.perf_counter()
        for _ in range(4):
            model(pixels, merge=schedule)
        return time.perf_counter() - began

    try:
        for schedule in schedules.values():
            seconds(schedule)
        ratios = {
            name: statistics.median(seconds(MergeSchedule.off()) / seconds(schedule) for _ in range(rounds))
            for name, schedule in schedules.items()
        }
    finally:
        torch.set_num_threads(threads)
    return ratios
