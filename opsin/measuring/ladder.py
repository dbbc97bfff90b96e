"""Measurements of a ladder: how much each rung changes a bundle's answers, and how much faster a worker gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle import Bundle, BundleError
from models.bundle_schema import Metric
from models.layers.stepwise import InvalidInput
from models.loading import LoadedModel, load
from models.merge_schedule import MergeSchedule
from server.tasks.embedding import text_jobs
from server.worker.backends import Backends
from server.worker.device_layout import Layout
from server.worker.executors import Arrays, check
from server.worker.warmup import Loader, compare, run_at_once

OFF = "off"
BATCH = 8
ROWS = 1024
"""Vectors that are compared with all others at a time: a matrix of all of them may not fit in memory."""

ROUNDS = 5

Schedules = Mapping[str, MergeSchedule]
"""By rung; `off` is added."""


@dataclass(frozen=True)
class Examples:
    """Images, and what is known of them."""

    pixels: NDArray[np.uint8]
    """(N, S, S, 3) at the bundle's size."""
    labels: NDArray[np.int64] | None = None
    """(N,): the right label of each image, of classifiers; None: unknown."""
    captions: Sequence[str] = ()
    """Texts that describe images, of pairs; none: unknown."""
    captioned: Sequence[int] = ()
    """Index of the image that each caption describes."""


@dataclass(frozen=True)
class Quality:
    """Results of a ladder on the same examples."""

    metric: Metric
    count: int
    """Number of images, captions, clips or sounds."""
    shares: Mapping[str, float]
    """By rung, 0 to 1; `off` is there too."""
    truncated: int = 0
    """Captions that were too long and lost their end."""
    classes: int = 0
    """Labels over which a mean average precision is the mean."""


@dataclass(frozen=True)
class Throughput:
    batch_size: int
    ratios: Mapping[str, float]
    """By rung: images per second relative to merging off, whose ratio is 1."""


def measure_quality(bundle: Bundle, schedules: Schedules, examples: Examples, device: torch.device) -> Quality:
    """Run the examples at each rung in float32. Raises BundleError, also for answers that are not finite and captions that cannot be read.

    Classifiers: accuracy, or without labels agreement with merging off. Others: recall at 1 (arXiv 1412.2306) from captions to images, or
    without captions from merged vectors to unmerged ones.
    """
    model = load(bundle, device=device, packed=True)
    unmerged = _answers(model, MergeSchedule.off(), examples.pixels)
    answers = {OFF: unmerged} | {name: _answers(model, schedule, examples.pixels) for name, schedule in schedules.items()}
    if bundle.spec.task == "classify":
        labels = unmerged.argmax(axis=1) if examples.labels is None else examples.labels
        shares = {name: float((logits.argmax(axis=1) == labels).mean()) for name, logits in answers.items()}
        return Quality("agreement" if examples.labels is None else "top-1", len(labels), shares)
    if not examples.captions:
        own = np.arange(len(unmerged))
        shares = {name: float((_nearest(vectors, unmerged) == own).mean()) for name, vectors in answers.items()}
        return Quality("image-recall", len(own), shares)
    captions, truncated = _vectors_of_texts(model, examples.captions)
    shares = {name: float((_nearest(captions, vectors) == np.array(examples.captioned)).mean()) for name, vectors in answers.items()}
    return Quality("text-recall", len(captions), shares, truncated)


def measure_throughput(bundle: Bundle, schedules: Schedules, loader: Loader) -> Throughput:
    """Compare each rung with merging off in all backends that may run it, as workers do, at the batch size of the best throughput.

    Ratios are medians of `ROUNDS`. Raises BundleError."""
    warm = loader.measure(bundle)
    if warm.backends is None:
        raise BundleError(f"{bundle.spec.id}: task {bundle.spec.task} is answered step by step, and has no ladder of images")
    backends, size = warm.backends, warm.steps.best
    backends.open()
    off = backends.schedule(MergeSchedule.off())
    ratios: dict[str, list[float]] = {OFF: [1.0], **{name: [] for name in schedules}}
    for _ in range(ROUNDS):
        seconds = _seconds(backends, loader.layout, MergeSchedule.off(), size)
        for name, schedule in schedules.items():
            same = backends.schedule(schedule) == off
            ratios[name].append(1.0 if same else seconds / _seconds(backends, loader.layout, schedule, size))
    return Throughput(size, {name: median(found) for name, found in ratios.items()})


def _seconds(backends: Backends, layout: Layout, schedule: MergeSchedule, size: int) -> float:
    """Seconds of a batch in the backend that would run it. They compare with others of the same bundle, which `compare` has seen to."""
    compare(backends, layout, schedule, size, run_at_once)
    return backends.times.best(backends.schedule(schedule), backends.usable)[size]


def _answers(model: LoadedModel, schedule: MergeSchedule, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits (N, classes), or vectors (N, dim)."""
    name, merge = "logits" if model.spec.task == "classify" else "embedding", schedule.expand(model.depth)
    parts = [_checked(model, {"pixels": pixels[first : first + BATCH]}, {"merge": merge})[name] for first in range(0, len(pixels), BATCH)]
    return np.concatenate(parts)


def _vectors_of_texts(model: LoadedModel, captions: Sequence[str]) -> tuple[NDArray[np.float32], int]:
    """Vectors (n, dim), and how many texts were cut."""
    outputs = []
    for job in text_jobs.packed(captions):
        answer = _checked(model, {name: array[None] for name, array in job.items() if name not in text_jobs.UNREAD}, {})
        outputs.append({**{name: rows[0] for name, rows in answer.items()}, **job})
    found = text_jobs.vectors(outputs)
    return np.stack([found[place][0] for place in range(len(captions))]), sum(cut for _, cut in found.values())


def _checked(model: LoadedModel, arrays: Arrays, options: Mapping[str, object]) -> Arrays:
    try:
        answer = model.forward(arrays, options)
        check(answer, len(next(iter(arrays.values()))), model.spec, arrays.get("lengths"))
    except (InvalidInput, ValueError) as error:
        raise BundleError(f"{model.spec.id}: {error}") from error
    return answer


def _nearest(queries: NDArray[np.float32], gallery: NDArray[np.float32]) -> NDArray[np.int64]:
    """Index of the vector of the gallery (N, dim) with the greatest cosine, for each query (n, dim)."""
    starts = range(0, len(queries), ROWS)
    found: NDArray[np.int64] = np.concatenate([(queries[first : first + ROWS] @ gallery.T).argmax(axis=1) for first in starts])
    return found
