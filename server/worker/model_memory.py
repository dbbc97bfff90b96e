"""The weights of a worker's bundles within a bound: those of the bundle that was used longest ago leave first, and come back when a batch
needs them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol
from weakref import WeakKeyDictionary

from server.telemetry import logs

log = logs.get(__name__)


class Holder(Protocol):
    """Whoever has weights (`Backends`)."""

    @property
    def id(self) -> str: ...

    @property
    def nbytes(self) -> int:
        """Of the weights that are in memory; 0: they have left."""

    def release(self) -> None: ...

    def restore(self) -> None:
        """Raises BundleError."""


class ModelMemory:
    """bound: bytes. What runs stays whatever the bound says, and a bundle that is larger than it runs alone."""

    def __init__(self, bound: int = sys.maxsize) -> None:
        self._bound = bound
        self._used: WeakKeyDictionary[Holder, int] = WeakKeyDictionary()
        """When each holder was used last, as a number that counts batches."""
        self._users: WeakKeyDictionary[Holder, int] = WeakKeyDictionary()
        """How many batches use it now."""
        self._batches = 0
        self._lock = threading.Lock()

    @contextmanager
    def using(self, holder: Holder) -> Iterator[None]:
        """Inside the `with` block the holder's weights are in memory. Loading them makes other batches wait."""
        with self._lock:
            if not holder.nbytes:
                holder.restore()
                log.info("weights back in memory", bundle=holder.id, bytes=holder.nbytes)
            self._batches += 1
            self._used[holder] = self._batches
            self._users[holder] = self._users.get(holder, 0) + 1
            self._make_room()
        try:
            yield
        finally:
            with self._lock:
                self._users[holder] -= 1

    def _make_room(self) -> None:
        used = sum(holder.nbytes for holder in self._used)
        for holder in sorted(self._used, key=self._used.__getitem__):
            if used <= self._bound:
                return
            if not self._users.get(holder) and holder.nbytes:
                used -= holder.nbytes
                holder.release()
                log.info("weights left memory", bundle=holder.id)
