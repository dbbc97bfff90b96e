"""Measurement of the ladder of a bundle for images: the accuracy of each rung, and its throughput in a worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle import Bundle, BundleError
from models.bundle_schema import Metric
from models.layers.stepwise import InvalidInput
from models.loading import LoadedModel, load
from models.merge_schedule import MergeSchedule
from server.scheduler.batcher import StepTimes
from server.tasks.embedding import vector_jobs
from server.worker.backends.candidates import open_all
from server.worker.backends.learner import HANDICAPS, Arm, Schedule
from server.worker.backends.loading import Loader
from server.worker.backends.runner import Backends
from server.worker.backends.verification import sample
from server.worker.device_layout import Layout
from server.worker.executors import Arrays, check_outputs

REPEATS = 3
MAX_PROBE_S = 4.0
"""Maximum time in seconds to find the best batch size, beyond the batch that is running then."""
MAX_BATCH_S = 1.0
"""Maximum time of a batch in seconds."""
OFF = "off"
BATCH_SIZE = 8
COMPARED_ROWS = 1024
"""Number of vectors to compare with all others at a time: the matrix of all of them may not fit into memory."""
ROUNDS = 5
Schedules = Mapping[str, MergeSchedule]
"""Rung → its merge schedule; `off` is added."""


def measure_seconds(layout: Layout, work: Callable[[], Any]) -> float:
    """Do `work` in every slot at the same time, and return the mean seconds it took by the layout's clock."""

    def run(_slot: int) -> float:
        torch.set_num_threads(layout.threads)
        started = layout.clock()
        work()
        return layout.clock() - started

    with ThreadPoolExecutor(layout.slots) as pool:
        return sum(pool.map(run, range(layout.slots))) / layout.slots


def find_best_size(largest: int, seconds: Callable[[int], float]) -> int:
    """Return the batch size with the best throughput. seconds: measures a batch of a size.

    Sizes are tried from 1 upwards, until the throughput has fallen twice, batches take long, memory ends or time is up."""
    steps, deadline, size, last_s = StepTimes(largest), time.monotonic() + MAX_PROBE_S, 1, 0.0
    while size <= steps.largest and size <= 4 * steps.best and (size == 1 or (time.monotonic() < deadline and 2 * last_s <= MAX_BATCH_S)):
        try:
            last_s = min(seconds(size) for _ in range(1 + REPEATS))
            steps.record(size, last_s)
        except (torch.OutOfMemoryError, MemoryError):
            steps.out_of_memory(size)
        size *= 2
    return steps.best


@dataclass(frozen=True)
class LabelledImages:
    """Images with their labels or captions, if known."""

    pixels: NDArray[np.uint8]
    """(N, S, S, 3) at the bundle's size."""
    labels: NDArray[np.int64] | None = None
    """(N,): the label of each image, for classifiers; None if unknown."""
    captions: Sequence[str] = ()
    """Texts that describe images, for image-text pairs; empty if unknown."""
    captioned: Sequence[int] = ()
    """Index of the image that each caption describes."""


@dataclass(frozen=True)
class Quality:
    """Accuracy of each rung of a ladder, on the same images."""

    metric: Metric
    count: int
    """Number of images, captions, clips or sounds."""
    shares: Mapping[str, float]
    """Accuracy by rung, and of `off`, from 0 to 1."""
    truncated: int = 0
    """Number of captions that were too long and were cut."""
    classes: int = 0
    """Number of labels that a mean average precision averages over."""


@dataclass(frozen=True)
class Throughput:
    batch_size: int
    ratios: Mapping[str, float]
    """Images per second by rung, relative to merging off, whose ratio is 1."""


def measure_quality(bundle: Bundle, schedules: Schedules, examples: LabelledImages, device: torch.device) -> Quality:
    """Measure the accuracy of each rung in float32.

    Classifiers: accuracy or, without labels, agreement with merging off. Others: recall at 1 (arXiv 1412.2306) from captions to images or,
    without captions, from merged vectors to unmerged ones. Raises BundleError, also for answers that are not finite and captions that the
    tokenizer rejects.
    """
    model = load(bundle, device=device, packed=True)
    unmerged = _run_all(model, MergeSchedule.off(), examples.pixels)
    answers = {OFF: unmerged} | {name: _run_all(model, schedule, examples.pixels) for name, schedule in schedules.items()}
    if bundle.spec.task == "classify":
        labels = unmerged.argmax(axis=1) if examples.labels is None else examples.labels
        shares = {name: float((logits.argmax(axis=1) == labels).mean()) for name, logits in answers.items()}
        return Quality("agreement" if examples.labels is None else "top-1", len(labels), shares)
    if not examples.captions:
        indices = np.arange(len(unmerged))
        shares = {name: float((_nearest(vectors, unmerged) == indices).mean()) for name, vectors in answers.items()}
        return Quality("image-recall", len(indices), shares)
    captions, truncated = _embed_texts(model, examples.captions)
    shares = {name: float((_nearest(captions, vectors) == np.array(examples.captioned)).mean()) for name, vectors in answers.items()}
    return Quality("text-recall", len(captions), shares, truncated)


def measure_throughput(bundle: Bundle, schedules: Schedules, loader: Loader) -> Throughput:
    """Compare each rung with merging off in all backends that may run it, as workers do, at the batch size with the best throughput.

    Ratios are medians of `ROUNDS`. Raises BundleError.
    """
    backends, layout = loader.load(bundle).backends, loader.layout
    if backends is None:
        raise BundleError(f"{bundle.spec.id}: task {bundle.spec.task} is computed in steps, so it has no ladder for images")
    open_all(backends)
    off = backends.schedule(MergeSchedule.off())
    size = find_best_size(layout.largest_batch, lambda size: measure_seconds(layout, partial(_run_arm, backends, "eager", off, size)))
    ratios: dict[str, list[float]] = {OFF: [1.0], **{name: [] for name in schedules}}
    _measure_best(backends, off, size)  # also pays for what happens only once
    for _ in range(ROUNDS):
        seconds = _measure_best(backends, off, size)
        for name, schedule in schedules.items():
            expanded = backends.schedule(schedule)
            ratios[name].append(1.0 if expanded == off else seconds / _measure_best(backends, expanded, size))
    return Throughput(size, {name: median(found) for name, found in ratios.items()})


def _measure_best(backends: Backends, schedule: Schedule, size: int) -> float:
    """Return the seconds of a batch in the arm that a worker would settle on."""
    times = {
        arm: min(measure_seconds(backends.layout, partial(_run_arm, backends, arm, schedule, size)) for _ in range(REPEATS))
        for arm in backends.open_arms({"merge": schedule})
    }
    return times[min(times, key=lambda arm: HANDICAPS[arm] * times[arm])]


def _run_arm(backends: Backends, arm: Arm, schedule: Schedule, size: int) -> None:
    backends.run_arm(arm, sample(backends.spec, size), {"merge": schedule})


def _run_all(model: LoadedModel, schedule: MergeSchedule, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return logits (N, classes), or vectors (N, dim)."""
    name, merge = "logits" if model.spec.task == "classify" else "embedding", schedule.expand(model.depth)
    parts = [
        _forward(model, {"pixels": pixels[first : first + BATCH_SIZE]}, {"merge": merge})[name]
        for first in range(0, len(pixels), BATCH_SIZE)
    ]
    return np.concatenate(parts)


def _embed_texts(model: LoadedModel, captions: Sequence[str]) -> tuple[NDArray[np.float32], int]:
    """Return vectors (n, dim) of texts, and the number of texts that were cut."""
    outputs = []
    for job in vector_jobs.pack_texts(captions):
        answer = _forward(model, {name: array[None] for name, array in job.items() if name not in vector_jobs.UNREAD_ARRAYS}, {})
        outputs.append({**{name: rows[0] for name, rows in answer.items()}, **job})
    found = vector_jobs.vectors(outputs)
    return np.stack([found[place][0] for place in range(len(captions))]), sum(cut for _, cut in found.values())


def _forward(model: LoadedModel, arrays: Arrays, options: Mapping[str, object]) -> Arrays:
    try:
        answer = model.forward(arrays, options)
        check_outputs(answer, len(next(iter(arrays.values()))), model.spec, arrays.get("lengths"))
    except (InvalidInput, ValueError) as error:
        raise BundleError(f"{model.spec.id}: {error}") from error
    return answer


def _nearest(queries: NDArray[np.float32], gallery: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the index of the gallery's vector (N, dim) with the greatest cosine, for each query (n, dim): (n,)."""
    starts = range(0, len(queries), COMPARED_ROWS)
    found: NDArray[np.int64] = np.concatenate([(queries[first : first + COMPARED_ROWS] @ gallery.T).argmax(axis=1) for first in starts])
    return found
