"""Measurements: accuracy with its standard error, paired differences, calibration, and throughput as a ratio within one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar

from models.bundle_schema import Preprocess
from models.layers.forward import normalise
from models.merge_schedule import MergeSchedule
from models.systems.mae_st.model import VideoMAE, VideoMAEConfig
from models.systems.vit.model import ViT
from training.data.load_image import RGBPixels

Right = npt.NDArray[np.bool_]
"""(N,) whether each picture's prediction was right."""


@dataclass(frozen=True)
class MeanWithError:
    """A mean over n pictures with its standard error."""

    value: float
    standard_error: float
    n: int

    def to_json(self) -> dict[str, float]:
        return {name: round(number, 5) for name, number in asdict(self).items()}


def accuracy(right: Right) -> MeanWithError:
    return mean(right.astype(np.float64))


def difference(right: Right, other: Right) -> MeanWithError:
    """Accuracy of `right` minus that of `other` on the same pictures; the error is that of the paired difference."""
    return mean(right.astype(np.float64) - other.astype(np.float64))


def compare_with(right: Right, rival: Right) -> dict[str, dict[str, float]]:
    """Return a rival's accuracy on the same images, and the gain over it."""
    return {"accuracy": accuracy(rival).to_json(), "gain": difference(right, rival).to_json()}


def top_k(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], k: int) -> Right:
    """Return for each row of `logits` (N, classes) whether the label is among the k best."""
    best = np.argpartition(-logits, k - 1, axis=1)[:, :k]
    return np.asarray((best == labels[:, np.newaxis]).any(axis=1))


def fit_temperature(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """Return the divisor of logits (N, classes) that maximises the likelihood of the labels."""
    scores, targets = torch.from_numpy(logits).double(), torch.from_numpy(labels)

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(scores / np.exp(log_temperature), targets))

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))


def calibration_error(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], bins: int = 15) -> float:
    """Return the expected calibration error (arXiv 1706.04599): the mean difference of confidence and accuracy over bins."""
    return calibration_error_of(logits, logits.argmax(axis=1) == labels, bins)


def calibration_error_of(logits: npt.NDArray[np.float32], right: Right, bins: int = 15) -> float:
    """Return the expected calibration error of predictions that are known to be right or wrong."""
    confidence = torch.from_numpy(logits).softmax(dim=1).amax(dim=1).numpy()
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    return float(np.abs(np.bincount(place, weights=confidence - right, minlength=bins)).sum() / len(right))


def cluster_mean(values: npt.NDArray[np.float64] | Right, clusters: Sequence[str]) -> MeanWithError:
    """Return the mean of values (N,), with the standard error of two or more clusters, whose members are not independent."""
    numbers = values.astype(np.float64)
    _, place = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(place, weights=numbers - numbers.mean())
    spread = np.sqrt(np.square(sums).sum() * len(sums) / (len(sums) - 1)) / len(numbers)
    return MeanWithError(float(numbers.mean()), float(spread), len(numbers))


def mean(values: npt.NDArray[np.float64]) -> MeanWithError:
    """Return the mean of at least two values (N,)."""
    return MeanWithError(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))), len(values))


@torch.inference_mode()
def logits(model: ViT, pixels: RGBPixels, preprocess: Preprocess, schedule: MergeSchedule, batch_size: int = 64) -> npt.NDArray[np.float32]:
    """pixels (N, S, S, 3) → (N, classes)."""
    batches = torch.split(torch.from_numpy(pixels), batch_size)
    scores = [model(normalise(batch, preprocess, torch.float32), merge=schedule).logits for batch in batches]
    return np.asarray(torch.cat(scores).numpy())


def relative_throughput(model: ViT | VideoMAE, schedules: Mapping[str, MergeSchedule], *, batch_size: int, rounds: int) -> dict[str, float]:
    """`relative_speed` of a classifier of images or clips."""
    config = model.config
    shape = config.clip_shape if isinstance(config, VideoMAEConfig) else (3, config.image_size, config.image_size)
    inputs = torch.rand(batch_size, *shape)
    return relative_speed(lambda schedule: model(inputs, merge=schedule), schedules, rounds=rounds)


@torch.inference_mode()
def relative_speed(call: Callable[[MergeSchedule], object], schedules: Mapping[str, MergeSchedule], *, rounds: int) -> dict[str, float]:
    """How many times faster than merging off each schedule is: on one thread, in alternation with merging off, the median of `rounds`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def seconds(schedule: MergeSchedule) -> float:
        started_at = time.perf_counter()
        for _ in range(4):
            call(schedule)
        return time.perf_counter() - started_at

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
