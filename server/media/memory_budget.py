"""Memory that threads may take at the same time for preparing requests and presenting answers, in bytes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

SMALL_DIVISOR = 64
"""Divisor of the budget: smaller shares never wait."""
MEDIUM_DIVISOR = 4
"""Divisor of the budget: smaller shares do not wait for larger ones, but use a quarter that is added to the budget."""


class MemoryBudget:
    """A budget of `nbytes` that blocks threads until their memory fits, with another quarter of it for smaller shares.

    A share that would never fit is admitted alone. Reserve all that a piece of work needs at once: a thread that holds memory and waits for
    more may wait for ever."""

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self._large, self._medium = _BudgetPool(nbytes), _BudgetPool(nbytes // 4)

    @contextmanager
    def reserve(self, nbytes: int) -> Iterator[None]:
        """Reserve memory for the block; waits until it is available."""
        self.acquire(nbytes)
        try:
            yield
        finally:
            self.release(nbytes)

    def acquire(self, nbytes: int) -> None:
        """Reserve memory until `release`; waits until it is available."""
        self._pool_for(nbytes).acquire(nbytes, at_once=SMALL_DIVISOR * nbytes <= self._nbytes)

    def release(self, nbytes: int) -> None:
        self._pool_for(nbytes).release(nbytes)

    def _pool_for(self, nbytes: int) -> _BudgetPool:
        return self._medium if MEDIUM_DIVISOR * nbytes <= self._nbytes else self._large


class _BudgetPool:
    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self._taken = 0
        self._changed = threading.Condition()
        self._turn = threading.Lock()
        """Held by the next thread in line, so that a large image is not overtaken for ever."""

    def acquire(self, nbytes: int, *, at_once: bool) -> None:
        if at_once:
            with self._changed:
                self._taken += nbytes
            return
        with self._turn, self._changed:
            if self._taken and self._taken + nbytes > self._nbytes:
                self._changed.wait_for(lambda: not self._taken or self._taken + nbytes <= self._nbytes)
            self._taken += nbytes

    def release(self, nbytes: int) -> None:
        with self._changed:
            self._taken -= nbytes
            self._changed.notify_all()
