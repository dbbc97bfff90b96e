"""When more jobs will come: what a batch that is not full needs to know before it waits."""

from __future__ import annotations

from collections import deque
from statistics import median

RESOLUTION = 0.00025
"""Seconds. Jobs that were pulled together came at most this far apart: a round trip of the queue."""


class Arrivals:
    """Remembers how far apart jobs come, and how many are under way at most.

    Clients that wait for their answer before they ask again (a closed loop) come back in a burst after each batch. The
    most jobs seen under way at once tell how large that burst can become, so that nobody waits for a client who does not exist.
    """

    def __init__(self) -> None:
        self._gaps: deque[float] = deque(maxlen=15)
        self._crowds: deque[int] = deque(maxlen=16)
        self._last: float | None = None

    def came(self, count: int, now: float) -> None:
        """`count` jobs were pulled together at `now` (monotonic seconds)."""
        if self._last is not None:
            self._gaps.append(now - self._last)
        self._gaps.extend([0.0] * (count - 1))
        self._last = now

    def under_way(self, count: int) -> None:
        """At the end of a batch `count` jobs were in the worker, the batch included."""
        self._crowds.append(count)

    @property
    def gap(self) -> float:
        """Seconds between two jobs, typically; infinite while unknown."""
        return max(median(self._gaps), RESOLUTION) if self._gaps else float("inf")

    def missing(self, present: int) -> int:
        """How many more could come while `present` jobs are in the worker."""
        return max(0, max(self._crowds, default=0) - present)
