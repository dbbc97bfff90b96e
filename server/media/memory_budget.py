"""Memory that threads may take at the same time for preparing requests and presenting answers, in bytes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

SMALL = 64
"""So small a share of the budget waits for nobody."""
MEDIUM = 4
"""So small a share of it waits for no larger one: it comes out of a quarter that is added to the budget."""


class MemoryBudget:
    """Lets threads in while what they need together fits into `nbytes`, and a quarter of that for what is smaller; one that would never fit
    is let in alone.

    Ask once for all that a piece of work needs: whoever holds memory and waits for more may wait for ever.
    """

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self._large, self._medium = _Share(nbytes), _Share(nbytes // 4)

    @contextmanager
    def taken(self, nbytes: int) -> Iterator[None]:
        """Blocks until there is room."""
        self.acquire(nbytes)
        try:
            yield
        finally:
            self.release(nbytes)

    def acquire(self, nbytes: int) -> None:
        """As `taken`, until `release`."""
        self._share_of(nbytes).acquire(nbytes, at_once=SMALL * nbytes <= self._nbytes)

    def release(self, nbytes: int) -> None:
        self._share_of(nbytes).release(nbytes)

    def _share_of(self, nbytes: int) -> _Share:
        return self._medium if MEDIUM * nbytes <= self._nbytes else self._large


class _Share:
    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self._taken = 0
        self._changed = threading.Condition()
        self._door = threading.Lock()
        """Held by the one that is next, so that a large picture is not overtaken for ever."""

    def acquire(self, nbytes: int, *, at_once: bool) -> None:
        if at_once:
            with self._changed:
                self._taken += nbytes
            return
        with self._door, self._changed:
            if self._taken and self._taken + nbytes > self._nbytes:
                self._changed.wait_for(lambda: not self._taken or self._taken + nbytes <= self._nbytes)
            self._taken += nbytes

    def release(self, nbytes: int) -> None:
        with self._changed:
            self._taken -= nbytes
            self._changed.notify_all()
