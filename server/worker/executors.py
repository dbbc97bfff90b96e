"""How a batch is computed and what comes out: `Executor` is the contract, `OneShot` one forward pass; `stepwise.py` holds the other one.

Every bundle has an executor of its own. Any number of threads may use it at once, with different jobs.
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

from kernels.device_errors import is_out_of_memory, is_sticky
from models.bundle import BundleError, BundleSpec
from server.concurrency.cancellation import strip_tracebacks
from server.queue.messages import QueuedJob
from server.queue.worker.delivery import Delivery

MAX_SEEN_SHAPES = 1024
"""Shapes that are remembered, as many as oneDNN keeps prepared."""

VECTORS = frozenset({"embedding", "vectors"})
"""Outputs of unit length."""
MAX_SQUARED_NORM_ERROR = 1e-3

Arrays = dict[str, NDArray[Any]]


def read_arrays(job: QueuedJob) -> Arrays:
    """The arrays of a job that its model reads: those that its options call `unread` stay out of batches, states and devices."""
    unread = job.options.get("unread", ())
    return {name: array.to_numpy() for name, array in job.arrays.items() if name not in unread}


def with_returned_arrays(job: QueuedJob, outputs: Mapping[str, NDArray[Any]]) -> Arrays:
    """The outputs, and those arrays of the job that its options want `returned`: whoever presents the answer does not have them."""
    returned = job.options.get("returned", ())
    return {**outputs, **{name: job.arrays[name].to_numpy() for name in returned if name in job.arrays}}


@dataclass(frozen=True)
class JobOutputs:
    """The outputs of one job, without a batch dimension."""

    job: Delivery
    outputs: Arrays
    batch_wait: float
    """Seconds from the pull to the start of its first batch."""
    inference: float
    """Seconds on the device, in all its batches."""


@dataclass(frozen=True)
class ProgressReport:
    """How far a job has come."""

    job: Delivery
    done: int
    total: int
    unit: str
    preview: Arrays = field(default_factory=dict)
    """Arrays that can be shown already; empty: none."""


@dataclass(frozen=True)
class ComputedBatch:
    """A batch that was computed: all of a one-shot job, one step of a stepwise one."""

    jobs: list[Delivery]
    started: float
    """Monotonic seconds."""
    seconds: float
    answers: list[JobOutputs]
    """Answers of those that came to their end."""
    unfinished: list[Delivery] = field(default_factory=list)
    """The others: more steps follow."""
    reports: list[ProgressReport] = field(default_factory=list)
    """Reports on those whose clients follow their progress."""
    weight: float = 0.0
    """Cost of the batch in usual jobs; 0: its number of jobs."""
    started_jobs: int = 0
    """Number of jobs that took their first step."""
    is_new_shape: bool = False
    """Whether no batch of its shape had run before, so that it also paid for preparing the shape, or it was a trial of a backend."""
    made_no_progress: bool = False
    """Whether all jobs are as they were: what they need is still being read."""
    has_new_backend: bool = False
    """Whether its shape has another backend from now on, so that times of earlier batches say nothing."""

    @property
    def size(self) -> int:
        """Cost of the batch in usual jobs, rounded."""
        return round(self.weight) or len(self.jobs)


@dataclass(frozen=True)
class ProgressReports:
    """How far jobs are that begin now, or have just started."""

    reports: list[ProgressReport]


@dataclass(frozen=True)
class FailedJob:
    """A job that made the model fail, by itself."""

    job: Delivery
    error: Exception
    """Its frames are gone."""
    traceback: str = ""
    """Text for the log: where in the model it was raised."""


@dataclass(frozen=True)
class OutOfMemoryBatch:
    """A batch that did not fit into memory; its halves follow, or the failure of its only job."""

    jobs: list[Delivery]


@dataclass(frozen=True)
class UnservedJobs:
    """Jobs of a bundle that was unloaded while they waited."""

    jobs: list[Delivery]


@dataclass(frozen=True)
class DepartedJobs:
    """Jobs of several steps that left between two of them."""

    jobs: list[Delivery]
    how: Literal["failed", "unwanted", "handed_back"]


Outcome = ComputedBatch | ProgressReports | FailedJob | OutOfMemoryBatch | DepartedJobs
Result = ComputedBatch | ProgressReports | FailedJob | OutOfMemoryBatch | UnservedJobs | DepartedJobs


class Executor(Protocol):
    @property
    def unit(self) -> str:
        """Name of a step; empty: a job is one forward pass."""

    def run(self, jobs: list[Delivery]) -> Iterator[Outcome]:
        """Take the next step of each job: those that have not started start. Where it fails, halves tell who is to blame."""

    def weight(self, job: Delivery) -> float:
        """Cost of its next step in usual jobs."""

    def all_started(self, jobs: list[Delivery]) -> bool:
        """Whether each of them has taken a step."""

    def drop(self, jobs: list[Delivery]) -> None:
        """Forget how far these jobs have come: they are cancelled or handed back."""


class BatchRun(NamedTuple):
    """A batch that a model has run."""

    outputs: Arrays
    is_untypical: bool = False
    """Whether its time says nothing of the next batches."""
    has_new_backend: bool = False
    """Whether other batches of its kind are run by another backend from now on."""


class ForwardModel(Protocol):
    """The part of `Backends` that `OneShot` needs."""

    @property
    def spec(self) -> BundleSpec: ...

    def run_batch(self, arrays: Arrays, options: Mapping[str, Any]) -> BatchRun: ...


class OneShot:
    """Runs a batch as one forward pass. Where that fails, its halves tell who is to blame, and the others are answered."""

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
        """A forward pass keeps nothing."""

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
        given = [read_arrays(delivery.job) for delivery in jobs]
        stacked = {name: self._stack([arrays[name] for arrays in given]) for name in given[0]}
        with self._streams.current():
            run = self.model.run_batch(stacked, jobs[0].job.options)
        check_outputs(run.outputs, len(jobs), self.model.spec, stacked.get("lengths"))
        return run

    def _stack(self, rows: list[NDArray[Any]]) -> NDArray[Any]:
        """(…) of each job → (B, …); page-locked on the way to a GPU, so that the copy runs beside the computation."""
        if not self._streams.on_gpu:
            return np.stack(rows)
        shape = (len(rows), *rows[0].shape)
        pinned = torch.empty(shape, dtype=torch.from_numpy(np.empty(0, rows[0].dtype)).dtype, pin_memory=True).numpy()
        stacked: NDArray[Any] = np.stack(rows, out=pinned)
        return stacked


def check_outputs(outputs: Arrays, jobs: int, spec: BundleSpec, lengths: NDArray[Any] | None = None) -> None:
    """Raises ValueError for what is no answer: another number of rows than jobs, scores without a finite best one, or vectors without
    direction. lengths: (B, R), of the texts, 0 where there is none."""
    for name, values in outputs.items():
        if values.shape[:1] != (jobs,):
            raise ValueError(f"{spec.id}: output {name} has the shape {values.shape}: its first dimension must be {jobs}, one row a job")
        if name == "logits" and not np.isfinite(values.max(axis=-1)).all():  # a class that is ruled out may have -inf
            raise ValueError(f"{spec.id}: output {name} is infinite or not a number")
        if name in VECTORS:
            squares = np.einsum("...c,...c->...", values, values)
            wanted = 1.0 if lengths is None else lengths > 0
            if not (np.abs(squares - wanted) < MAX_SQUARED_NORM_ERROR).all():
                raise ValueError(f"{spec.id}: output {name} holds a vector that is zero, infinite or not a number")


class SeenShapes:
    """The shapes of batches that have run: the first of each also pays for preparing it, oneDNN's layouts for example."""

    def __init__(self) -> None:
        self._known: dict[str, bool] = {}
        """The latest used last."""
        self._lock = threading.Lock()

    def is_new(self, size: int, options: Mapping[str, Any]) -> bool:
        """Whether no batch of `size` jobs with these options has run; from then on one has."""
        shape = f"{size} {sorted(options.items())}"
        with self._lock:
            new = self._known.pop(shape, True)
            self._known[shape] = False
            if len(self._known) > MAX_SEEN_SHAPES:
                del self._known[next(iter(self._known))]
        return new


class Streams:
    """CUDA streams of batches, whatever bundle they run; nothing without a GPU.

    A batch borrows the stream that was used last, so that there are as many as batches ran at once: PyTorch keeps freed memory by stream.
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
    """Run a batch; where it fails, its halves, down to the job that fails by itself. `run` must leave nothing behind when it raises."""
    try:
        computed = run(jobs)
    except BundleError as error:  # its weights had left memory: no job is to blame
        unloadable = strip_tracebacks(error)
        yield from (FailedJob(job, unloadable) for job in jobs)
        return
    except Exception as error:
        if is_sticky(error):
            raise  # it ends the worker, and the jobs run elsewhere
        told = traceback.format_exc() if len(jobs) == 1 else ""
        failure = strip_tracebacks(error)  # they keep the tensors of the batch, and its halves need the room
    else:
        yield computed
        return
    if is_out_of_memory(failure):
        free_memory()
        yield OutOfMemoryBatch(jobs)
    if len(jobs) == 1:
        yield FailedJob(jobs[0], failure, told)
        return
    half = len(jobs) // 2
    yield from run_with_bisection(jobs[:half], run, free_memory)
    yield from run_with_bisection(jobs[half:], run, free_memory)
