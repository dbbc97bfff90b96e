"""Cache of values of finished jobs, since clients may send the same input again: bounded in bytes and in age."""

from __future__ import annotations

import mmap
import threading
import time
from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor


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
