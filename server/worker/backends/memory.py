"""The weights of a worker's bundles within a limit of memory."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol
from weakref import WeakKeyDictionary

from models.bundle import BundleSpec
from server.telemetry import logs

log = logs.get(__name__)


class WeightsHolder(Protocol):
    """A bundle whose weights may leave memory."""

    @property
    def spec(self) -> BundleSpec: ...

    @property
    def nbytes(self) -> int:
        """Bytes of the weights in memory."""

    def release(self) -> None:
        """Let go of all weights."""

    def restore(self) -> None:
        """Load the weights again. Raises BundleError."""


class ModelMemory:
    """A limit for the weights of all bundles. Those that were used longest ago leave first, and return when a batch needs them.

    Weights that are in use stay regardless of the limit, as do those of jobs of several steps. A bundle that exceeds the limit runs alone.
    """

    def __init__(self, max_bytes: int = sys.maxsize) -> None:
        self._max_bytes = max_bytes
        self._last_used: WeakKeyDictionary[WeightsHolder, int] = WeakKeyDictionary()
        """Number of the batch that used each holder last."""
        self._users: WeakKeyDictionary[WeightsHolder, int] = WeakKeyDictionary()
        """Number of batches that use each holder now."""
        self._released: WeakKeyDictionary[WeightsHolder, int] = WeakKeyDictionary()
        """Size in bytes of the weights that have left memory."""
        self._pinned: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self._batches = 0
        self._lock = threading.Lock()

    def pin(self, owner: object, nbytes: int) -> None:
        """Count weights that stay in memory as long as their owner exists."""
        with self._lock:
            self._pinned[owner] = nbytes
            self._evict(0)

    @contextmanager
    def using(self, holder: WeightsHolder) -> Iterator[None]:
        """Keep the holder's weights in memory inside the `with` block. Other batches wait while they are loaded. Raises BundleError."""
        with self._lock:
            self._batches += 1
            self._last_used[holder] = self._batches
            self._users[holder] = self._users.get(holder, 0) + 1
            try:
                self._evict(self._released.get(holder, 0))
                if not holder.nbytes:
                    holder.restore()
                    self._released.pop(holder, None)
                    log.info("weights back in memory", bundle=holder.spec.id, bytes=holder.nbytes)
                    self._evict(0)
            except BaseException:
                self._users[holder] -= 1
                raise
        try:
            yield
        finally:
            with self._lock:
                self._users[holder] -= 1

    def _evict(self, nbytes: int) -> None:
        if self._max_bytes == sys.maxsize:
            return
        used = nbytes + sum(self._pinned.values()) + sum(holder.nbytes for holder in self._last_used)
        for holder in sorted(self._last_used, key=self._last_used.__getitem__):
            if used <= self._max_bytes:
                return
            if not self._users.get(holder) and holder.nbytes:
                self._released[holder] = holder.nbytes
                used -= holder.nbytes
                holder.release()
                log.info("weights left memory", bundle=holder.spec.id)
