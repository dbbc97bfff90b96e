"""Values that a model keeps of jobs that have ended, since their clients may ask again: bounded in bytes and in time."""

from __future__ import annotations

import mmap
import threading
import time
from collections import OrderedDict
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor


class HasNbytes(Protocol):
    @property
    def nbytes(self) -> int: ...


Value = TypeVar("Value", bound=HasNbytes)


class BoundedCache(Generic[Value]):
    """Values by name, at most `most_bytes` of them; those that were kept longest ago go first. For any number of threads."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[str, tuple[Value, float]] = OrderedDict()
        """With the monotonic seconds at which they were kept; the oldest first."""
        self._nbytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def find(self, name: str) -> Value | None:
        with self._lock:
            found = self._kept.get(name)
        return None if found is None else found[0]

    def keep(self, name: str, value: Value) -> None:
        """Nothing is kept under an empty name."""
        if not name:
            return
        with self._lock:
            self._drop(name)
            self._kept[name] = value, time.monotonic()
            self._nbytes += value.nbytes
            self._shrink(self._most_bytes)

    def trim(self, room: int, seconds: float) -> None:
        """Let go of what was kept more than `seconds` ago, and of the oldest beyond `room` bytes."""
        until = time.monotonic() - seconds
        with self._lock:
            for name in [name for name, (_, kept_at) in self._kept.items() if kept_at < until]:
                self._drop(name)
            self._shrink(room)

    def _shrink(self, room: int) -> None:
        while self._nbytes > room and self._kept:
            self._drop(next(iter(self._kept)))

    def _drop(self, name: str) -> None:
        if (dropped := self._kept.pop(name, None)) is not None:
            self._nbytes -= dropped[0].nbytes


def copy_to_own_pages(values: Tensor) -> Tensor:
    """A copy to be kept: on a CPU it has pages of its own, which go back to the kernel with it. In the heap, what is kept for minutes lies
    between what a step needs for a moment, so that the heap grows and can never be given back."""
    if values.device.type != "cpu" or not values.nbytes:
        return values.clone()
    return torch.frombuffer(mmap.mmap(-1, values.nbytes), dtype=values.dtype).view(values.shape).copy_(values)


@runtime_checkable
class HasCaches(Protocol):
    """Steps that keep something of ended jobs (`models.layers.stepwise.StepwiseModel`)."""

    @property
    def recent(self) -> tuple[BoundedCache[HasNbytes], ...]: ...


def evict_caches(steps: object, room: int, seconds: float) -> int:
    """Let steps forget what is older than `seconds` or beyond `room` bytes in all. Returns the bytes that they still keep."""
    left = room
    for recent in steps.recent if isinstance(steps, HasCaches) else ():
        recent.trim(max(0, left), seconds)
        left -= recent.nbytes
    return room - left
