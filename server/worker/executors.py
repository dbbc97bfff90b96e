"""Executors of batches and their results: the protocol `Executor`, and `OneShot` for one forward pass (steps: `stepwise.py`).

Every bundle has its own executor. Any number of threads may use it at once, with different jobs.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, LifoQueue
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.devices import is_out_of_memory, is_sticky
from models.bundle import BundleError, BundleSpec
from server.concurrency import strip_tracebacks
from server.queue.messages import QueuedJob
from server.queue.worker.delivery import Delivery

MAX_SEEN_SHAPES = 1024
"""Number of shapes to remember, as many as the primitives that oneDNN caches."""

VECTORS = frozenset({"embedding", "vectors"})
"""Outputs of unit length."""
MAX_SQUARED_NORM_ERROR = 1e-3

Arrays = dict[str, NDArray[Any]]


def read_arrays(job: QueuedJob) -> Arrays:
    """Return the arrays of a job that its model reads: all but those that its options list as `unread`."""
    unread = job.options.get("unread", ())
    return {name: array.to_numpy() for name, array in job.arrays.items() if name not in unread}


def with_returned_arrays(job: QueuedJob, outputs: Mapping[str, NDArray[Any]]) -> Arrays:
    """Return the outputs and the arrays of the job that its options list as `returned`, which the presenting gateway may not have."""
    returned = job.options.get("returned", ())
    return {**outputs, **{name: job.arrays[name].to_numpy() for name in returned if name in job.arrays}}


@dataclass(frozen=True)
class JobOutputs:
    """The outputs of one job, without a batch dimension."""

    job: Delivery
    outputs: Arrays
    batch_wait: float
    """Time in seconds from the pull to the start of its first batch."""
    inference: float
    """Time in seconds on the device, in all its batches."""


@dataclass(frozen=True)
class JobReport:
    """The progress of a job."""

    job: Delivery
    done: int
    total: int
    unit: str
    preview: Arrays = field(default_factory=dict)
    """Arrays that can already be shown, if any."""


@dataclass(frozen=True)
class ComputedBatch:
    """Results of a batch: the forward pass of one-shot jobs, or one step of stepwise ones."""

    jobs: list[Delivery]
    started: float
    """Monotonic seconds."""
    seconds: float
    answers: list[JobOutputs]
    """Outputs of the jobs that have finished."""
    unfinished: list[Delivery] = field(default_factory=list)
    """Jobs that have more steps."""
    reports: list[JobReport] = field(default_factory=list)
    """Reports on jobs whose clients follow their progress."""
    weight: float = 0.0
    """Cost of the batch in typical jobs; 0: its number of jobs."""
    started_jobs: int = 0
    """Number of jobs that took their first step."""
    is_new_shape: bool = False
    """Whether its time is untypical: it was the first batch of its shape, which includes preparing it, or a trial of a backend."""
    made_no_progress: bool = False
    """Whether no job took a step, since their inputs are still being read."""
    has_new_backend: bool = False
    """Whether its shape has another backend from now on, so that times of earlier batches are out of date."""

    @property
    def size(self) -> int:
        """Cost of the batch in typical jobs, rounded."""
        return round(self.weight) or len(self.jobs)


@dataclass(frozen=True)
class Reports:
    """Reports on jobs that start now or have just started."""

    reports: list[JobReport]


@dataclass(frozen=True)
class FailedJob:
    """A job on which the model failed when it ran alone."""

    job: Delivery
    error: Exception
    """Exception without its frames."""
    traceback: str = ""
    """Formatted traceback for the log."""


@dataclass(frozen=True)
class TooLarge:
    """A batch that did not fit into memory. Its halves follow, or the failure of its only job."""

    jobs: list[Delivery]


@dataclass(frozen=True)
class UnservedJobs:
    """Jobs of a bundle that was unloaded while they waited."""

    jobs: list[Delivery]


@dataclass(frozen=True)
class DepartedJobs:
    """Jobs of several steps that left between two steps."""

    jobs: list[Delivery]
    reason: Literal["failed", "unwanted", "handed_back"]


Outcome = ComputedBatch | Reports | FailedJob | TooLarge | DepartedJobs
Result = ComputedBatch | Reports | FailedJob | TooLarge | UnservedJobs | DepartedJobs


class Executor(Protocol):
    @property
    def unit(self) -> str:
        """Name of a step; empty: a job is one forward pass."""

    def run(self, jobs: list[Delivery]) -> Iterator[Outcome]:
        """Start the new jobs and take one step of each. If a batch fails, its halves are run to find the job that causes it."""

    def weight(self, job: Delivery) -> float:
        """Return the cost of the job's next step, in typical jobs."""

    def all_started(self, jobs: list[Delivery]) -> bool:
        """Return whether each of the jobs has started."""

    def drop(self, jobs: list[Delivery]) -> None:
        """Drop the states of jobs that are cancelled or returned to the queue."""


class BatchRun(NamedTuple):
    """A batch that a model has run."""

    outputs: Arrays
    is_untypical: bool = False
    """Whether its time does not predict that of the next batches."""
    has_new_backend: bool = False
    """Whether batches of its kind run on another backend from now on."""


class ForwardModel(Protocol):
    """The part of `Backends` that `OneShot` needs."""

    @property
    def spec(self) -> BundleSpec: ...

    def run_batch(self, arrays: Arrays, options: Mapping[str, Any]) -> BatchRun: ...


class OneShot:
    """An executor of one forward pass. If a batch fails, its halves are run to find the job that causes it; the others finish."""

    unit = ""

    def __init__(self, model: ForwardModel, device: torch.device) -> None:
        self.model = model
        self.shapes = SeenShapes()
        self._streams = Streams(device)

    def run(self, jobs: list[Delivery]) -> Iterator[Outcome]:
        return run_with_bisection(jobs, self._run, self._streams.free_memory)

    def weight(self, job: Delivery) -> float:
        return 1.0

    def all_started(self, jobs: list[Delivery]) -> bool:
        return False

    def drop(self, jobs: list[Delivery]) -> None:
        """Do nothing: a forward pass keeps no state."""

    def _run(self, jobs: list[Delivery]) -> ComputedBatch:
        first = jobs[0].job
        is_new_shape = self.shapes.is_new(len(jobs), {"bucket": first.bucket} if "utf8" in first.arrays else first.options)
        started = time.monotonic()
        run = self._forward(jobs)
        seconds, outputs = time.monotonic() - started, run.outputs
        rows = [with_returned_arrays(job.job, {name: values[i] for name, values in outputs.items()}) for i, job in enumerate(jobs)]
        answers = [JobOutputs(job, row, started - job.pulled_at, seconds) for job, row in zip(jobs, rows, strict=True)]
        return ComputedBatch(
            jobs, started, seconds, answers, is_new_shape=is_new_shape or run.is_untypical, has_new_backend=run.has_new_backend
        )

    def _forward(self, jobs: list[Delivery]) -> BatchRun:
        inputs = [read_arrays(delivery.job) for delivery in jobs]
        stacked = {name: self._stack([arrays[name] for arrays in inputs]) for name in inputs[0]}
        with self._streams.current():
            run = self.model.run_batch(stacked, jobs[0].job.options)
        check_outputs(run.outputs, len(jobs), self.model.spec, stacked.get("lengths"))
        return run

    def _stack(self, rows: list[NDArray[Any]]) -> NDArray[Any]:
        """Stack (…) of each job to (B, …), in page-locked memory for a GPU, so that the copy overlaps computation."""
        if not self._streams.on_gpu:
            return np.stack(rows)
        shape = (len(rows), *rows[0].shape)
        pinned = torch.empty(shape, dtype=torch.from_numpy(np.empty(0, rows[0].dtype)).dtype, pin_memory=True).numpy()
        stacked: NDArray[Any] = np.stack(rows, out=pinned)
        return stacked


def check_outputs(outputs: Arrays, jobs: int, spec: BundleSpec, lengths: NDArray[Any] | None = None) -> None:
    """Check the outputs of a batch. lengths: (B, R), of the texts, 0 for a missing text.

    Raises ValueError if there is not one row per job, if no score of a row is finite, or if a vector is not of unit length."""
    for name, values in outputs.items():
        if values.shape[:1] != (jobs,):
            raise ValueError(f"{spec.id}: output {name} has the shape {values.shape}: its first dimension must be {jobs}, one row a job")
        if name == "logits" and not np.isfinite(values.max(axis=-1)).all():  # an excluded class may have -inf
            raise ValueError(f"{spec.id}: output {name} is infinite or not a number")
        if name in VECTORS:
            squares = np.einsum("...c,...c->...", values, values)
            expected = 1.0 if lengths is None else lengths > 0
            if not (np.abs(squares - expected) < MAX_SQUARED_NORM_ERROR).all():
                raise ValueError(f"{spec.id}: output {name} holds a vector that is zero, infinite or not a number")


class SeenShapes:
    """Shapes of batches that have run: the first batch of a shape includes preparing it, for example layouts of oneDNN."""

    def __init__(self) -> None:
        self._shapes: dict[str, bool] = {}
        """Shapes by last use, the latest last."""
        self._lock = threading.Lock()

    def is_new(self, size: int, options: Mapping[str, Any]) -> bool:
        """Return whether no batch of `size` jobs with these options has run, and record that one has."""
        shape = f"{size} {sorted(options.items())}"
        with self._lock:
            new = self._shapes.pop(shape, True)
            self._shapes[shape] = False
            if len(self._shapes) > MAX_SEEN_SHAPES:
                del self._shapes[next(iter(self._shapes))]
        return new


class Streams:
    """CUDA streams shared by the batches of all bundles; none without a GPU.

    A batch borrows the most recently used stream, so that there are no more streams than concurrent batches: PyTorch keeps freed memory by
    stream.
    """

    _free: LifoQueue[torch.cuda.Stream] = LifoQueue()

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self._device = device

    @contextmanager
    def current(self) -> Iterator[None]:
        """Borrow a stream, so that one batch copies while another computes."""
        if not self.on_gpu:
            yield
            return
        try:
            stream = self._free.get_nowait()
        except Empty:
            stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            self._free.put(stream)

    def free_memory(self) -> None:
        if self.on_gpu:
            torch.cuda.empty_cache()


def run_with_bisection(
    jobs: list[Delivery], run: Callable[[list[Delivery]], ComputedBatch], free_memory: Callable[[], None]
) -> Iterator[Outcome]:
    """Run a batch or, if it fails, its halves, down to single jobs that fail. `run` must leave no state behind if it raises."""
    try:
        computed = run(jobs)
    except BundleError as error:  # weights could not be loaded again: no job caused it
        unloadable = strip_tracebacks(error)
        yield from (FailedJob(job, unloadable) for job in jobs)
        return
    except Exception as error:
        if is_sticky(error):
            raise  # it ends the worker, and the jobs run elsewhere
        trace = traceback.format_exc() if len(jobs) == 1 else ""
        failure = strip_tracebacks(error)  # tracebacks keep the tensors of the batch, whose memory its halves need
    else:
        yield computed
        return
    if is_out_of_memory(failure):
        free_memory()
        yield TooLarge(jobs)
    if len(jobs) == 1:
        yield FailedJob(jobs[0], failure, trace)
        return
    half = len(jobs) // 2
    yield from run_with_bisection(jobs[:half], run, free_memory)
    yield from run_with_bisection(jobs[half:], run, free_memory)
