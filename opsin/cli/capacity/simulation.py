"""A simulation of workers: random arrivals, batches that start as soon as a slot is free, and their measured times."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ARRIVALS = 20_000
"""Arrivals of one simulation: the 99th percentile then rests on the 200 slowest."""
WARM_UP_SHARE = 0.1
"""Share of the arrivals at the start that are not counted."""


@dataclass(frozen=True)
class BatchTimes:
    """Measured mean seconds of a batch, by size. Batches have at most `largest` items."""

    seconds: Mapping[int, float]
    largest: int

    def predict(self, size: int) -> float:
        """Return the seconds of a batch: linear between measured sizes, in proportion beyond the largest, and at least the smallest's."""
        sizes = sorted(self.seconds)
        if size <= sizes[0]:
            return self.seconds[sizes[0]]
        if size >= sizes[-1]:
            return self.seconds[sizes[-1]] * size / sizes[-1]
        upper = next(measured for measured in sizes if measured >= size)
        lower = sizes[sizes.index(upper) - 1]
        return self.seconds[lower] + (size - lower) / (upper - lower) * (self.seconds[upper] - self.seconds[lower])

    @property
    def best_seconds_per_item(self) -> float:
        """The least time of a slot for an item, in a batch of any size that may run."""
        return min(self.predict(size) / size for size in range(1, self.largest + 1))


@dataclass(frozen=True)
class Demand:
    """Items per second of one bundle, and what its batches take."""

    rate: float
    times: BatchTimes


@dataclass(frozen=True)
class SimulatedPool:
    """Behaviour of some slots under a load."""

    busy: float
    """Share of the time in which slots run batches."""
    mean_s: float
    """Mean time from an item's arrival to the end of its batch."""
    p99_s: float
    batch_size: float
    """Mean number of items in a batch."""


def simulate(demands: Sequence[Demand], slots: int, *, arrivals: int = ARRIVALS, seed: int = 0) -> SimulatedPool:
    """Simulate Poisson arrivals at `slots` slots. A free slot takes what waits of the bundle whose item has waited longest."""
    chance = random.Random(seed)
    rate = sum(demand.rate for demand in demands)
    picks = chance.choices(range(len(demands)), [demand.rate for demand in demands], k=arrivals)
    moments = itertools.accumulate(chance.expovariate(rate) for _ in range(arrivals))
    coming = deque(zip(moments, picks, strict=True))
    waiting: list[deque[float]] = [deque() for _ in demands]
    free_at = [0.0] * slots
    counted_from = WARM_UP_SHARE * arrivals / rate
    latencies: list[float] = []
    busy_s = end = 0.0
    batches = 0
    while coming or any(waiting):
        start = free_at[0]
        if not any(waiting):
            start = max(start, coming[0][0])
        while coming and coming[0][0] <= start:
            moment, pick = coming.popleft()
            waiting[pick].append(moment)
        pick = min((index for index, queue in enumerate(waiting) if queue), key=lambda index: waiting[index][0])
        size = min(len(waiting[pick]), demands[pick].times.largest)
        seconds = demands[pick].times.predict(size)
        taken = [waiting[pick].popleft() for _ in range(size)]
        heapq.heapreplace(free_at, start + seconds)
        if start >= counted_from:
            busy_s, batches, end = busy_s + seconds, batches + 1, max(end, start + seconds)
            latencies += [start + seconds - moment for moment in taken]
    latencies.sort()
    return SimulatedPool(
        busy=min(1.0, busy_s / slots / (end - counted_from)),
        mean_s=sum(latencies) / len(latencies),
        p99_s=latencies[math.ceil(0.99 * len(latencies)) - 1],
        batch_size=len(latencies) / batches,
    )
