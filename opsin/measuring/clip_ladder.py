"""Measurement of the ladder of a bundle for clips or sound. The service's task prepares the files, which are classified with all of their
views or windows, at each rung and with merging off."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle import Bundle, BundleError, BundleSpec
from models.bundle_schema import Metric
from models.layers.stepwise import InvalidInput
from models.loading import LoadedStepwiseModel, StepOutputs, load
from opsin.measuring.ladder import BATCH_SIZE, OFF, REPEATS, ROUNDS, Quality, Throughput, find_best_size, measure_seconds
from server.media.images import ImageDecoder
from server.media.limits import MediaError
from server.tasks.classify.clips import ClassifyClipsPlan, ClassifyClipsTask, Use
from server.tasks.options import InvalidOption
from server.tasks.registry import main_task
from server.worker.backends.loading import Loader
from server.worker.device_layout import Layout
from server.worker.executors import Arrays


@dataclass(frozen=True)
class LabelledRecording:
    """A clip, a sound, or a clip with its sound."""

    files: Mapping[str, Path]
    """File of each part, as it would be sent: `video`, `audio`."""
    labels: tuple[int, ...] = ()
    """Indices of its labels; empty if unknown."""

    @property
    def name(self) -> str:
        return " with ".join(str(file) for file in self.files.values())


class UnusableRecording(Exception):
    """A file that cannot be classified; the message names it."""


def task_of(spec: BundleSpec) -> ClassifyClipsTask | None:
    """Return the task that classifies clips and sounds by a bundle; None for a bundle of anything else."""
    task = main_task(spec)
    return task if isinstance(task, ClassifyClipsTask) else None


def measure_recordings(
    bundle: Bundle,
    use: Use,
    recordings: Sequence[LabelledRecording],
    decoder: ImageDecoder,
    device: torch.device,
    advance: Callable[[int], object] = lambda count: None,
) -> Quality:
    """Measure the ladder of a bundle's spec in float32. advance: called with the number of recordings after each batch.

    The metric is top-1 if each recording has one label, mean average precision if one has several, and agreement with merging off if
    labels are unknown. Raises UnusableRecording, and BundleError for scores that are infinite or not numbers."""
    task, steps, plans = _task(bundle.spec), load(bundle, device=device, packed=True).steps, _plans(bundle.spec, use)
    assert steps is not None
    scores: dict[str, list[NDArray[np.float32]]] = {name: [] for name in plans}
    for first in range(0, len(recordings), BATCH_SIZE):
        chunk = recordings[first : first + BATCH_SIZE]
        jobs = [_prepare(task, recording, plans[OFF], bundle.spec, decoder) for recording in chunk]
        with _enough_memory(bundle.spec):
            for name, plan in plans.items():
                scores[name] += _score(steps, chunk, jobs, task.arguments(plan, {}))
        advance(len(chunk))
    stacked = {name: np.stack(rows) for name, rows in scores.items()}
    for name, rows in stacked.items():
        if not np.isfinite(rows).all():
            raise BundleError(f"{bundle.spec.id}: its scores at {name} are infinite or not numbers")
    return score_quality(stacked, [recording.labels for recording in recordings])


def score_quality(scores: Mapping[str, NDArray[np.float32]], labels: Sequence[tuple[int, ...]]) -> Quality:
    """Return the accuracy of each rung. scores: by rung and `off`, (inputs, labels); labels: of each input, all empty if unknown."""
    count, classes = scores[OFF].shape
    if any(len(indices) > 1 for indices in labels):
        truth = np.zeros((count, classes), np.bool_)
        for row, indices in enumerate(labels):
            truth[row, list(indices)] = True
        means = {name: mean_average_precision(rows, truth) for name, rows in scores.items()}
        return Quality("mean-average-precision", count, {name: mean for name, (mean, _) in means.items()}, classes=means[OFF][1])
    metric: Metric = "top-1" if any(labels) else "agreement"
    right = np.array([indices[0] for indices in labels]) if any(labels) else scores[OFF].argmax(axis=1)
    return Quality(metric, count, {name: float((rows.argmax(axis=1) == right).mean()) for name, rows in scores.items()})


def mean_average_precision(scores: NDArray[np.floating], truth: NDArray[np.bool_]) -> tuple[float, int]:
    """Return the mean of `average_precision` over the labels that some input has, and the number of those labels.

    scores, truth: (inputs, labels); truth: which inputs have which label. Raises ValueError if no input has a label."""
    present = np.flatnonzero(truth.any(axis=0))
    if not len(present):
        raise ValueError("no input has a label")
    return float(np.mean([average_precision(scores[:, label], truth[:, label]) for label in present])), len(present)


def average_precision(scores: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
    """Return the sum over thresholds of precision × increase of recall, as scikit-learn's `average_precision_score`.

    There is a threshold at each score, shared by inputs of equal scores, and no interpolation. scores, truth: (inputs,), at least one of
    them true.
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of each run of equal scores
    return float((np.diff(hits[last], prepend=0) * hits[last] / (last + 1)).sum() / hits[-1])


def measure_steps(bundle: Bundle, use: Use, loader: Loader) -> Throughput:
    """Compare each rung with merging off: the time of a step, which is a view or window of each job of a batch.

    The batch size is the one with the best throughput with merging off. Reading files is left out. Ratios are medians of `ROUNDS`. Raises
    BundleError, also if memory runs out.
    """
    task, plans, layout = _task(bundle.spec), _plans(bundle.spec, use), loader.layout
    steps = load(bundle, device=layout.device, packed=True).steps
    assert steps is not None
    samples = task.samples(bundle.spec)
    job = next(job for job in samples if ("sound" in job) == (use != "sight"))

    def seconds(name: str, size: int) -> float:
        return _measure_seconds(steps, layout, [job] * size, task.arguments(plans[name], {}))

    with _enough_memory(bundle.spec):
        size = find_best_size(layout.largest_batch, lambda size: seconds(OFF, size))
        ratios: dict[str, list[float]] = {name: [] for name in plans}
        for turn in range(1 + ROUNDS):
            took = {name: seconds(name, size) for name in sorted(plans, reverse=turn % 2 == 1)}
            for name in plans if turn else ():  # the first turn also pays for what happens only once
                ratios[name].append(took[OFF] / took[name] if _merges(plans[name]) else 1.0)
    return Throughput(size, {name: median(found) for name, found in ratios.items()})


@contextmanager
def _enough_memory(spec: BundleSpec) -> Iterator[None]:
    """Raise BundleError if memory runs out inside the block."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise BundleError(
            f"{spec.id}: out of memory during the measurement; stop other programs on the device, or use another one"
        ) from error


def _task(spec: BundleSpec) -> ClassifyClipsTask:
    task = task_of(spec)
    if task is None:
        raise BundleError(f"{spec.id}: it does not classify clips or sounds")
    return task


def _plans(spec: BundleSpec, use: Use) -> dict[str, ClassifyClipsPlan]:
    """Return the service's plans for requests at each rung, by its name, and with merging off."""
    task = _task(spec)
    used_parts = None if spec.sound is None else use
    return {name: task.plan(task.options(merge=name, use=used_parts), spec) for name in (OFF, *(rung.name for rung in spec.ladder))}


def _merges(plan: ClassifyClipsPlan) -> bool:
    return any(plan.schedule) or any(plan.schedule_sight or ())


def _prepare(
    task: ClassifyClipsTask, recording: LabelledRecording, plan: ClassifyClipsPlan, spec: BundleSpec, decoder: ImageDecoder
) -> Arrays:
    """Return the arrays that a worker would receive for a recording."""
    try:
        item = {part: file.read_bytes() for part, file in recording.files.items()}
        (arrays,) = task.prepare(item, plan, spec, decoder)
    except (MediaError, InvalidOption, OSError) as error:
        raise UnusableRecording(f"{recording.name}: {error}") from error
    return {name: np.array(array) for name, array in arrays.items() if name not in task.unread_arrays}


def _score(
    steps: LoadedStepwiseModel, recordings: Sequence[LabelledRecording], jobs: Sequence[Arrays], arguments: Mapping[str, Any]
) -> list[NDArray[np.float32]]:
    """Return the scores (labels,) of each recording. All of them take their steps together."""
    try:
        return _run(steps, jobs, arguments)
    except InvalidInput:  # one of them is unusable: find out which
        return [_score_one(steps, recording, job, arguments) for recording, job in zip(recordings, jobs, strict=True)]


def _score_one(steps: LoadedStepwiseModel, recording: LabelledRecording, job: Arrays, arguments: Mapping[str, Any]) -> NDArray[np.float32]:
    try:
        return _run(steps, [job], arguments)[0]
    except InvalidInput as error:
        raise UnusableRecording(f"{recording.name}: {error}") from error


def _run(steps: LoadedStepwiseModel, jobs: Sequence[Arrays], arguments: Mapping[str, Any]) -> list[NDArray[np.float32]]:
    states = dict(enumerate(steps.start(jobs, [arguments] * len(jobs))))
    scores = {}
    while states:
        outcomes = steps.step(list(states.values()), [False] * len(states))
        for job, outcome in zip(list(states), outcomes, strict=True):
            if isinstance(outcome, StepOutputs):
                scores[job] = cast(NDArray[np.float32], outcome.outputs["scores"])
                del states[job]
            else:
                states[job] = outcome.state
    return [scores[job] for job in range(len(jobs))]


def _measure_seconds(steps: LoadedStepwiseModel, layout: Layout, jobs: Sequence[Arrays], arguments: Mapping[str, Any]) -> float:
    """Return the seconds of the first step of a batch, the fastest of a few. Every slot has its own batch."""
    took = []
    for _ in range(REPEATS):
        started = deque(steps.start(jobs, [arguments] * len(jobs)) for _ in range(layout.slots))
        took.append(measure_seconds(layout, lambda started=started: steps.step(started.pop(), [False] * len(jobs))))  # type: ignore[misc]
    return min(took)
