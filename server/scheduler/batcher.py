"""Batches of jobs of one forward pass: how large they should be, and which jobs run next.

Pure data: no threads, no clock of its own, no knowledge of tasks or devices. The bucket with the most urgent job runs at once, with as many
of its jobs as the budget allows; the budget is the size with nearly the highest measured throughput. A batch that is not full waits only if
that can pay off: if one batch with the jobs that are still expected saves more time than they take to arrive.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from math import ceil, inf
from statistics import median

from server.queue.worker.delivery import Delivery

MAX_BACKLOG_BUDGETS = 4
"""Maximum number of jobs waiting in a worker, in batch budgets, for mixed buckets: other workers cannot take the jobs that wait here."""
MIN_ARRIVAL_GAP_S = 0.00025
"""Lower bound of the time between two jobs: those pulled together arrived within one round trip to the queue."""
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
        self._find_best()

    def forget(self) -> None:
        """Drop the measurements, since batches are computed in another way from now on."""
        self._measured.clear()
        self.seconds.clear()
        self.best = 1

    def out_of_memory(self, size: int) -> None:
        """Try no batch of `size` for the next `REGROW_AFTER_BATCHES` batches: other data may have left memory by then."""
        self.largest = min(self.largest, 1 << max(0, (size // 2).bit_length() - 1))
        for too_large in [measured for measured in self._measured if measured > self.largest]:
            del self._measured[too_large], self.seconds[too_large]
        self._find_best()

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

    def _find_best(self) -> None:
        rates = {size: size / max(seconds, 1e-9) for size, seconds in self.seconds.items()}
        enough = self._share * max(rates.values(), default=0.0)
        self.best = min((size for size, rate in rates.items() if rate >= enough), default=1)

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


@dataclass(frozen=True)
class Bucket:
    """A key of jobs that may share a batch."""

    queue: str
    """Queue of the bundle and its content (`keys.queue`)."""
    key: str
    alone: str = ""
    """Entry id of a job that must run while nothing else runs in this worker."""

    @staticmethod
    def from_delivery(delivery: Delivery) -> Bucket:
        return Bucket(delivery.queue, delivery.job.bucket, delivery.entry_id if delivery.alone else "")

    @property
    def bundle(self) -> str:
        """`name@version`."""
        return self.queue.partition(":")[0]


class Arrivals:
    """Statistics of arriving jobs: the time between them and the number in flight.

    Clients that wait for an answer before their next request (a closed loop) return in a burst after each batch. The most jobs seen
    in flight bound the size of that burst, so that a batch does not wait for clients that do not exist.
    """

    def __init__(self) -> None:
        self._gaps: deque[float] = deque(maxlen=15)
        self._in_flight_counts: deque[int] = deque(maxlen=16)
        self._last: float | None = None

    def record(self, count: int, now: float) -> None:
        """Record that `count` jobs were pulled together at `now` (monotonic seconds)."""
        if self._last is not None:
            self._gaps.append(now - self._last)
        self._gaps.extend([0.0] * (count - 1))
        self._last = now

    def record_in_flight(self, count: int) -> None:
        """Record that `count` jobs were in the worker at the end of a batch, the batch included."""
        self._in_flight_counts.append(count)

    @property
    def typical_gap_s(self) -> float:
        """Return the median time between two jobs; infinite while unknown."""
        return max(median(self._gaps), MIN_ARRIVAL_GAP_S) if self._gaps else inf

    def expected_more(self, present: int) -> int:
        """Return how many more jobs may arrive while `present` jobs are in the worker."""
        return max(0, max(self._in_flight_counts, default=0) - present)


def due(delivery: Delivery) -> float:
    """Return the urgency of a job, smaller first. A reclaimed job goes first: it has already waited for a dead worker."""
    return -inf if delivery.alone else delivery.due


class Batcher:
    def __init__(self, step_times: Callable[[Bucket], StepTimes]) -> None:
        self._step_times = step_times
        self._buckets: dict[Bucket, list[Delivery]] = {}
        """Waiting jobs, the most urgent first. No list is empty."""
        self._waiting_since: float | None = None
        self.arrivals = Arrivals()

    def __len__(self) -> int:
        """Return the number of waiting jobs."""
        return sum(map(len, self._buckets.values()))

    @property
    def has_exclusive_job(self) -> bool:
        """Whether a waiting job must run alone."""
        return any(bucket.alone for bucket in self._buckets)

    @property
    def due(self) -> float:
        """Urgency of the most urgent waiting job; infinite if there is none."""
        return min((due(jobs[0]) for jobs in self._buckets.values()), default=inf)

    def add(self, delivery: Delivery) -> None:
        insort(self._buckets.setdefault(Bucket.from_delivery(delivery), []), delivery, key=due)

    def capacity(self, budget: int, idle_slots: int) -> int:
        """Return how many jobs to pull now: a batch for each idle slot, or one batch ahead if none is idle. `budget` is a typical batch."""
        batches = max(1, idle_slots)
        if not self._buckets:
            return budget * batches
        bucket = self._most_urgent()
        shortfall = self._step_times(bucket).target * batches - len(self._buckets[bucket])
        return max(0, min(shortfall, MAX_BACKLOG_BUDGETS * budget * batches - len(self)))

    def next(self, now: float, *, running: int, idle_slots: int, stepping: int = 0) -> list[Delivery] | float:
        """Return the next batch, or the seconds to wait for more jobs (infinite if there is nothing to start).

        running: jobs in other slots. stepping: jobs that take a step. idle_slots: slots that could start a batch, the caller's included.
        """
        if not self._buckets:
            return inf
        bucket = self._most_urgent()
        if bucket.alone:
            return inf if running + stepping else self._take(bucket, 1)
        steps = self._step_times(bucket)
        waiting = len(self._buckets[bucket])
        size = steps.target if waiting >= steps.target else min(steps.best, waiting)
        if idle_slots > 1:
            return self._take(bucket, min(size, ceil(waiting / idle_slots)))

        max_wait_s = self._max_wait_s(steps, waiting, running)
        if max_wait_s:
            if self._waiting_since is None:
                self._waiting_since = now
            if now < self._waiting_since + max_wait_s:
                return self._waiting_since + max_wait_s - now
        return self._take(bucket, size)

    def clear(self) -> list[Delivery]:
        """Remove and return all waiting jobs."""
        jobs = [job for bucket in self._buckets.values() for job in bucket]
        self._buckets.clear()
        return jobs

    def _most_urgent(self) -> Bucket:
        return min(self._buckets, key=lambda bucket: due(self._buckets[bucket][0]))

    def _max_wait_s(self, steps: StepTimes, waiting: int, running: int) -> float:
        """Return how long to wait for more jobs: the time that one batch saves over two, 0 if waiting cannot pay off."""
        missing = min(steps.best - waiting, self.arrivals.expected_more(len(self) + running))
        if missing <= 0 or len(self._buckets) > 1:
            return 0.0
        saved = steps.predict(waiting) + steps.predict(missing) - steps.predict(waiting + missing)
        return saved if missing * self.arrivals.typical_gap_s < saved else 0.0

    def _take(self, bucket: Bucket, size: int) -> list[Delivery]:
        self._waiting_since = None
        jobs = self._buckets.pop(bucket)
        batch, rest = jobs[:size], jobs[size:]
        if rest:
            self._buckets[bucket] = rest
        return batch
