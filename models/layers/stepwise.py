"""Protocol of models whose jobs take several steps: denoising steps, levels of a reconstruction, windows of a clip.

The caller keeps the states, decides which of them take their next step together, and may discard them at any time. Clients
may send the same input again, so values of finished jobs are cached, bounded in bytes and in age.
"""

from __future__ import annotations

import mmap
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from models.bundle import BundleSpec

Tensors = Mapping[str, Tensor]


class JobState(Protocol):
    """State of a job between its steps. A value: a step makes a new one and does not change what the old one refers to."""

    @property
    def done(self) -> int:
        """Number of steps taken."""

    @property
    def total(self) -> int:
        """Total number of steps; an estimate that may change from step to step."""

    @property
    def nbytes(self) -> int:
        """Memory on the device that this job keeps between its steps, in bytes."""


class JobTooLarge(Exception):
    """Error of a job whose steps need more than the limit: the client's fault. `option` names what would have to be less."""

    def __init__(self, option: str, detail: str) -> None:
        super().__init__(f"{option}: {detail}")
        self.option = option
        self.detail = detail


@dataclass(frozen=True)
class InProgress:
    """Outcome of a step that is not the last."""

    state: JobState
    preview: Tensors | None = None
    """Outputs that can be shown already, without a batch dimension; None if none were requested or there are none yet."""


@dataclass(frozen=True)
class StepCompletion:
    outputs: Tensors
    """Outputs of one job, without a batch dimension."""


class InvalidInput(Exception):
    """Error of a job whose input turned out to be unusable during its steps; the message is for the client."""


@dataclass(frozen=True)
class LoadedMember:
    """A member of a pipeline, as the pipeline's network gets it."""

    spec: BundleSpec
    model: nn.Module
    """Loaded, on the pipeline's device, in evaluation mode."""


class StepwiseModel(Protocol):
    """A model that answers in steps.

    A step that raises has changed nothing, since states are values: the caller may repeat it with fewer jobs. The outputs of a job must not
    depend on the others that take their steps with it.
    """

    @property
    def unit(self) -> str:
        """Name of the steps, for messages: `steps`, `levels`, `windows`."""

    def start(self, arrays: Sequence[Tensors], options: Sequence[Mapping[str, Any]]) -> list[JobState]:
        """Compute once what no step changes (an encoder, keys and values). Arrays and options of each job, on the model's device.

        Shapes are equal within a bucket, unless the task makes buckets of several shapes.
        """

    def step(self, states: Sequence[JobState], previews: Sequence[bool]) -> list[InProgress | StepCompletion]:
        """Take the next step of each state, in this order. Their progress and totals may differ.

        A job that has to wait, as for frames that are still being read, keeps the very same state, and no step is counted. previews: which
        of them should return a preview.
        """

    def cost(self, state: JobState) -> float:
        """Return the cost of the next step in items (tokens, points, …); 1 if all cost the same."""


StepwiseFactory = Callable[[nn.Module, BundleSpec, torch.device], StepwiseModel | None]
"""(model, its bundle's spec, its device) → its stepwise model; None if its config has a single forward pass."""


def keep_for_current_stream(tensor: Tensor) -> None:
    """Keep the memory of a tensor that another stream made until the current one has read it, even if the tensor is dropped before."""
    if tensor.is_cuda:
        tensor.record_stream(torch.cuda.current_stream(tensor.device))


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has computed all that this thread has queued, before other threads read it on streams of their own."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


class HasNbytes(Protocol):
    @property
    def nbytes(self) -> int: ...


Value = TypeVar("Value", bound=HasNbytes)


class BoundedCache(Generic[Value]):
    """Values by name, at most `max_bytes` of them; the oldest are evicted first. Any number of threads may use it at once."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._values: OrderedDict[str, tuple[Value, float]] = OrderedDict()
        self._nbytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def get(self, name: str) -> Value | None:
        with self._lock:
            entry = self._values.get(name)
        return None if entry is None else entry[0]

    def put(self, name: str, value: Value) -> None:
        """Store a value; an empty name stores nothing."""
        if not name:
            return
        with self._lock:
            self._drop(name)
            self._values[name] = value, time.monotonic()
            self._nbytes += value.nbytes
            self._shrink(self._max_bytes)

    def evict(self, max_bytes: int, seconds: float) -> None:
        """Drop values older than `seconds`, and the oldest ones beyond `max_bytes`."""
        until = time.monotonic() - seconds
        with self._lock:
            for name in [name for name, (_, stored_at) in self._values.items() if stored_at < until]:
                self._drop(name)
            self._shrink(max_bytes)

    def _shrink(self, max_bytes: int) -> None:
        while self._nbytes > max_bytes and self._values:
            self._drop(next(iter(self._values)))

    def _drop(self, name: str) -> None:
        if (dropped := self._values.pop(name, None)) is not None:
            self._nbytes -= dropped[0].nbytes


def copy_to_own_pages(values: Tensor) -> Tensor:
    """Copy values (any shape) into memory pages of their own if they are on a CPU: the pages go back to the kernel with the copy. In the
    heap, values that live for minutes would lie between those that a step needs for a moment, and the heap could never shrink."""
    if values.device.type != "cpu" or not values.nbytes:
        return values.clone()
    return torch.frombuffer(mmap.mmap(-1, values.nbytes), dtype=values.dtype).view(values.shape).copy_(values)


def evict_caches(steps: object, max_bytes: int, seconds: float) -> int:
    """Evict values older than `seconds`, and beyond `max_bytes` in all, from a stepwise model's `caches`, if it has any. Return the size of
    those that remain."""
    free = max_bytes
    for cache in getattr(steps, "caches", ()):
        cache.evict(max(0, free), seconds)
        free -= cache.nbytes
    return max_bytes - free
