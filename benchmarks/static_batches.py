"""Waiting of jobs if batches were static: the usual way of serving jobs of several steps, to compare with. A simulation.

A free slot takes what waits, first come first served, up to the largest batch. Rows that have finished leave, and the batch shrinks; none
joins until all have finished.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Arrival:
    at: float
    """Time of the arrival in seconds."""
    steps: int


def latencies(arrivals: Sequence[Arrival], step_seconds: Callable[[int], float], largest: int, slots: int) -> list[float]:
    """Return the seconds from each arrival to its last step, in the order of `arrivals`, which is that of time.

    step_seconds: duration of a step by the number of rows in its batch.
    """
    ended = [0.0] * len(arrivals)
    free = [0.0] * slots
    heapq.heapify(free)
    first = 0
    while first < len(arrivals):
        start = max(heapq.heappop(free), arrivals[first].at)
        batch = [index for index in range(first, min(first + largest, len(arrivals))) if arrivals[index].at <= start]
        first += len(batch)
        now, taken = start, 0
        for steps in sorted({arrivals[index].steps for index in batch}):
            rows = [index for index in batch if arrivals[index].steps > taken]
            now += (steps - taken) * step_seconds(len(rows))
            taken = steps
            for index in rows:
                if arrivals[index].steps == steps:
                    ended[index] = now
        heapq.heappush(free, now)
    return [end - arrival.at for end, arrival in zip(ended, arrivals, strict=True)]
