"""How a batch is computed. `OneShot` is one forward pass; every bundle has an executor of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle import BundleSpec
from server.queue.delivery import Delivery

Arrays = dict[str, NDArray[Any]]


class Model(Protocol):
    """What an executor needs of `models.loading.LoadedModel`."""

    @property
    def spec(self) -> BundleSpec: ...

    def forward(self, arrays: Arrays, options: Mapping[str, Any]) -> Arrays: ...


@dataclass(frozen=True)
class Answered:
    """A batch that was computed. `outputs` are stacked: row i belongs to `jobs[i]`."""

    jobs: list[Delivery]
    outputs: Arrays
    started: float
    """Monotonic seconds."""
    seconds: float


@dataclass(frozen=True)
class Refused:
    """A job that made the model fail, by itself."""

    job: Delivery
    error: Exception


@dataclass(frozen=True)
class TooLarge:
    """A batch of `size` did not fit into memory; its halves follow."""

    size: int


class OneShot:
    """Runs a batch as one forward pass. Where that fails, its halves tell who is to blame, and the others are answered."""

    def __init__(self, model: Model, device: torch.device) -> None:
        self.model = model
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._of_thread = threading.local()

    def run(self, jobs: list[Delivery]) -> Iterator[Answered | Refused | TooLarge]:
        started = time.monotonic()
        try:
            answered = Answered(jobs, self._forward(jobs), started, time.monotonic() - started)
        except Exception as error:
            failure = _without_frames(error)
        else:
            yield answered
            return
        if _out_of_memory(failure):
            self._free_memory()
            yield TooLarge(len(jobs))
        if len(jobs) == 1:
            yield Refused(jobs[0], failure)
            return
        half = len(jobs) // 2
        yield from self.run(jobs[:half])
        yield from self.run(jobs[half:])

    def _forward(self, jobs: list[Delivery]) -> Arrays:
        stacked = {name: self._stack([delivery.job.arrays[name].to_numpy() for delivery in jobs]) for name in jobs[0].job.arrays}
        options = jobs[0].job.options
        with torch.cuda.stream(self._stream()):
            outputs = self.model.forward(stacked, options)
        for name, values in outputs.items():
            if len(values) != len(jobs):
                raise ValueError(f"{self.model.spec.id}: output {name} has {len(values)} rows for {len(jobs)} jobs")
        return outputs

    def _stack(self, rows: list[NDArray[Any]]) -> NDArray[Any]:
        """(…) of each job → (B, …); page-locked on the way to a GPU, so that the copy runs beside the computation."""
        if not self._on_gpu:
            return np.stack(rows)
        shape = (len(rows), *rows[0].shape)
        pinned = torch.empty(shape, dtype=torch.from_numpy(np.empty(0, rows[0].dtype)).dtype, pin_memory=True).numpy()
        stacked: NDArray[Any] = np.stack(rows, out=pinned)
        return stacked

    def _stream(self) -> torch.cuda.Stream | None:
        """Each slot's own, so that one copies while another computes; None, which changes nothing, without a GPU."""
        if self._on_gpu and not hasattr(self._of_thread, "stream"):
            self._of_thread.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        return getattr(self._of_thread, "stream", None)

    def _free_memory(self) -> None:
        if self._on_gpu:
            torch.cuda.empty_cache()


def _without_frames(error: Exception) -> Exception:
    """The error, and what led to it, without tracebacks: their frames keep the tensors of the batch, and its halves need the room."""
    chain: list[BaseException] = [error]
    for link in chain:
        link.__traceback__ = None
        chain += [other for other in (link.__cause__, link.__context__) if other is not None and other.__traceback__ is not None]
    return error


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError)
