"""The best batch size of a bucket, learned from measured times."""

from __future__ import annotations

from collections import deque
from copy import deepcopy
from statistics import median

WINDOW = 5
"""Measurements kept per size. Their median ignores an interrupted batch and follows a lasting change within three batches."""
NEAR_BEST_SHARE = 0.97
"""Share of the best throughput from which a smaller batch is preferred: the same work, half the latency."""
NEAR_BEST_SHARE_STEPS = 0.985
"""Same share for jobs of many steps. It is larger since no client waits for a single step."""
RECHECK_EVERY_BATCHES = 60
"""Batches after which a neighbouring size is measured again, larger and smaller in turn: the best size changes with step times."""
REGROW_AFTER_BATCHES = 1000
"""Batches after which a size that did not fit into memory is tried again."""
RECHECK_REPEATS = 3
"""Batches in a row that measure a size, new or again: enough to move its median."""


class StepTimes:
    """Seconds per batch for the sizes 1, 2, 4, … `largest` (a power of two), and the size with the highest throughput.

    On many CPUs, batches of 4 to 8 items beat 16 (the activations no longer fit into the cache), so neither the largest batch that fits
    nor a line fitted to the measurements finds the peak: each size is measured separately.
    """

    def __init__(self, largest: int, share: float = NEAR_BEST_SHARE, limit: int = 0) -> None:
        """Start without measurements. share: as `NEAR_BEST_SHARE`. limit: size to which `largest` may grow again."""
        self.largest = largest
        self._limit = max(largest, limit)
        self._share = share
        self.best = 1
        """Smallest size with nearly the highest throughput; 1 while nothing is measured."""
        self.seconds: dict[int, float] = {}
        """Median of the measured times, by size."""
        self._measured: dict[int, deque[float]] = {}
        self._batches = 0

    def copy(self) -> StepTimes:
        """Return a copy, from which another bucket of the same bundle can start."""
        return deepcopy(self)

    def record(self, size: int, seconds: float) -> None:
        """Record a measurement. Sizes other than powers of two are ignored, since they say nothing about the peak."""
        if size > self.largest or size & (size - 1):
            return
        times = self._measured.setdefault(size, deque(maxlen=WINDOW))
        times.append(seconds)
        self._batches += 1
        if not self._batches % REGROW_AFTER_BATCHES and self.largest < self._limit:
            self.largest *= 2
        self.seconds[size] = median(times)
        self.best = self.smallest(self._share)

    def forget(self) -> None:
        """Drop the measurements, since batches are computed in another way from now on."""
        self._measured.clear()
        self.seconds.clear()
        self.best = 1

    def out_of_memory(self, size: int) -> None:
        """Try no batch of `size` for the next `REGROW` batches: other data may have left memory by then."""
        self.largest = min(self.largest, 1 << max(0, (size // 2).bit_length() - 1))
        for too_large in [measured for measured in self._measured if measured > self.largest]:
            del self._measured[too_large], self.seconds[too_large]
        self.best = self.smallest(self._share)

    @property
    def items_per_second(self) -> float:
        """Throughput of the best size; 0 while unknown."""
        seconds = self.seconds.get(self.best)
        return self.best / seconds if seconds else 0.0

    @property
    def target(self) -> int:
        """Size to run next if enough jobs wait: the best one, or one whose measurement is due."""
        larger = min(2 * self.best, self.largest)
        if len(self._measured.get(larger, ())) < RECHECK_REPEATS:
            return larger
        turn, batch = divmod(self._batches, RECHECK_EVERY_BATCHES)
        if batch < RECHECK_EVERY_BATCHES - RECHECK_REPEATS:
            return self.best
        return larger if turn % 2 else max(1, self.best // 2)

    def smallest(self, share: float) -> int:
        """Return the smallest size that reaches this share of the highest throughput, 1 while nothing is measured."""
        rates = {size: size / max(seconds, 1e-9) for size, seconds in self.seconds.items()}
        enough = share * max(rates.values(), default=0.0)
        return min((size for size, rate in rates.items() if rate >= enough), default=1)

    def predict(self, size: int) -> float:
        """Return the seconds of a batch: linear between measured sizes, in proportion beyond them, 0 while nothing is measured."""
        if size <= 0 or not self.seconds:
            return 0.0
        below = max((measured for measured in self.seconds if measured <= size), default=None)
        above = min((measured for measured in self.seconds if measured >= size), default=None)
        if below is None or above is None or below == above:
            nearest = below or above or size
            return self.seconds[nearest] * size / nearest
        share = (size - below) / (above - below)
        return self.seconds[below] + share * (self.seconds[above] - self.seconds[below])
