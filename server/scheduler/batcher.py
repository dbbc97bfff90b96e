"""Which jobs of one forward pass run next. Pure data: no threads, no clock of its own, no knowledge of tasks or devices.

The rule: the bucket with the most urgent job runs at once, with as many of its jobs as the budget allows. A batch that is not full
waits only if that can pay off: if one batch with the jobs that are still expected saves more time than they take to arrive.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, inf
from statistics import median

from server.queue.worker.delivery import Delivery
from server.scheduler.step_times import StepTimes

MAX_BACKLOG_BUDGETS = 4
"""Maximum number of jobs waiting in a worker, in batch budgets, for mixed buckets: other workers cannot take the jobs that wait here."""
MIN_ARRIVAL_GAP_S = 0.00025
"""Lower bound of the time between two jobs: those pulled together arrived within one round trip to the queue."""


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
