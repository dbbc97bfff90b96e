"""How many items a batch should hold, learned from measured step times."""

from __future__ import annotations

from collections import deque
from copy import deepcopy
from statistics import median

WINDOW = 5
"""Measurements kept per size. Their median shrugs off an interrupted batch and follows a lasting change within three batches."""
ALMOST = 0.97
"""A smaller batch that reaches this share of the best throughput wins: the same work, half the latency."""
ALMOST_STEPS = 0.985
"""The same of jobs that take many steps: nobody waits for one step alone, and short requests have smaller ones before them."""
RECHECK = 60
"""Every so many full batches a neighbouring size is measured again, larger and smaller in turn: the best size moves when step times do."""
REGROW = 1000
"""Number of batches after which a size is tried again that did not fit into memory."""
RECHECKS = 3
"""Batches in a row that measure it, and those that measure a new size: enough to move its median."""


class StepTimes:
    """Seconds per batch for the sizes 1, 2, 4, … `largest` (a power of two), and the size with the highest throughput.

    On many CPUs 4 to 8 items beat 16 (the activations leave the cache), so neither the largest batch that fits nor a line
    fitted through the measurements finds the peak: each size is measured for itself.
    """

    def __init__(self, largest: int, share: float = ALMOST, limit: int = 0) -> None:
        """share: of the best throughput, with which a smaller batch wins. limit: size to which `largest` grows back, at least `largest`."""
        self.largest = largest
        self._limit = max(largest, limit)
        self._share = share
        self.best = 1
        """The smallest size whose throughput is almost the highest; 1 while nothing is known."""
        self.seconds: dict[int, float] = {}
        """The median of what was measured, by size."""
        self._measured: dict[int, deque[float]] = {}
        self._batches = 0

    def like(self) -> StepTimes:
        """A copy to start another bucket of the same bundle from."""
        return deepcopy(self)

    def record(self, size: int, seconds: float) -> None:
        """Sizes between the powers of two teach nothing about the peak and are left out."""
        if size > self.largest or size & (size - 1):
            return
        times = self._measured.setdefault(size, deque(maxlen=WINDOW))
        times.append(seconds)
        self._batches += 1
        if not self._batches % REGROW and self.largest < self._limit:
            self.largest *= 2
        self.seconds[size] = median(times)
        self.best = self.smallest(self._share)

    def forget(self) -> None:
        """Start anew, since batches are computed in another way from now on."""
        self._measured.clear()
        self.seconds.clear()
        self.best = 1

    def out_of_memory(self, size: int) -> None:
        """Try no batch of `size` for the next `REGROW` batches: what else was in memory may have left it by then."""
        self.largest = min(self.largest, 1 << max(0, (size // 2).bit_length() - 1))
        for known in [known for known in self._measured if known > self.largest]:
            del self._measured[known], self.seconds[known]
        self.best = self.smallest(self._share)

    @property
    def items_per_second(self) -> float:
        """Throughput at the best size; 0 while unknown."""
        seconds = self.seconds.get(self.best)
        return self.best / seconds if seconds else 0.0

    @property
    def target(self) -> int:
        """The size to run next if enough jobs wait: the best one, or one whose measurement is due."""
        larger = min(2 * self.best, self.largest)
        if len(self._measured.get(larger, ())) < RECHECKS:
            return larger
        turn, batch = divmod(self._batches, RECHECK)
        if batch < RECHECK - RECHECKS:
            return self.best
        return larger if turn % 2 else max(1, self.best // 2)

    def smallest(self, share: float) -> int:
        """The smallest size that reaches this share of the highest throughput; 1 while nothing is known."""
        rates = {size: size / max(seconds, 1e-9) for size, seconds in self.seconds.items()}
        enough = share * max(rates.values(), default=0.0)
        return min((size for size, rate in rates.items() if rate >= enough), default=1)

    def predict(self, size: int) -> float:
        """Seconds of a batch: on straight lines between the measured sizes, in proportion beyond them; 0 while nothing is known."""
        if size <= 0 or not self.seconds:
            return 0.0
        below = max((known for known in self.seconds if known <= size), default=None)
        above = min((known for known in self.seconds if known >= size), default=None)
        if below is None or above is None or below == above:
            nearest = below or above or size
            return self.seconds[nearest] * size / nearest
        share = (size - below) / (above - below)
        return self.seconds[below] + share * (self.seconds[above] - self.seconds[below])
