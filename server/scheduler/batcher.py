"""Which jobs of one forward pass run next. Pure data: no threads, no clock of its own, no idea of tasks or devices.

The rule: the bucket with the most urgent job runs, as many of its jobs as the budget allows, at once. A batch that is not
full waits only if that can pay: where running the jobs that are still expected together with these saves more time than
passes until they are here.
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

HOARD = 4
"""At most so many budgets of jobs wait in a worker, for buckets that are mixed: what waits here, another worker cannot take."""
RESOLUTION = 0.00025
"""Seconds. Jobs that were pulled together came at most this far apart: a round trip of the queue."""


@dataclass(frozen=True)
class Bucket:
    """Jobs of one bucket may share a batch."""

    queue: str
    """Queue of the bundle and its content (`keys.queue`)."""
    key: str
    alone: str = ""
    """The entry id of a job that must run by itself, while nothing else runs in this worker."""

    @staticmethod
    def of(delivery: Delivery) -> Bucket:
        return Bucket(delivery.queue, delivery.job.bucket, delivery.entry_id if delivery.alone else "")

    @property
    def bundle(self) -> str:
        """`name@version`."""
        return self.queue.partition(":")[0]


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
        return max(median(self._gaps), RESOLUTION) if self._gaps else inf

    def missing(self, present: int) -> int:
        """How many more could come while `present` jobs are in the worker."""
        return max(0, max(self._crowds, default=0) - present)


def due(delivery: Delivery) -> float:
    """Smaller is more urgent. A reclaimed job has waited for one death already and goes first."""
    return -inf if delivery.alone else delivery.due


class Batcher:
    def __init__(self, step_times: Callable[[Bucket], StepTimes]) -> None:
        self._step_times = step_times
        self._buckets: dict[Bucket, list[Delivery]] = {}
        """No list is empty; the most urgent job comes first."""
        self._patient_since: float | None = None
        self.arrivals = Arrivals()

    def __len__(self) -> int:
        """Number of jobs that wait."""
        return sum(map(len, self._buckets.values()))

    @property
    def has_lone_job(self) -> bool:
        """Whether a job waits that must run alone."""
        return any(bucket.alone for bucket in self._buckets)

    @property
    def due(self) -> float:
        """The smallest of all that wait; infinite where none does."""
        return min((due(jobs[0]) for jobs in self._buckets.values()), default=inf)

    def add(self, delivery: Delivery) -> None:
        insort(self._buckets.setdefault(Bucket.of(delivery), []), delivery, key=due)

    def capacity(self, budget: int, idle_slots: int) -> int:
        """How many jobs to pull now: one batch for each idle slot, or one ahead where none is idle. `budget` is a typical batch."""
        batches = max(1, idle_slots)
        if not self._buckets:
            return budget * batches
        bucket = self._most_urgent()
        wanted = self._step_times(bucket).target * batches - len(self._buckets[bucket])
        return max(0, min(wanted, HOARD * budget * batches - len(self)))

    def next(self, now: float, *, running: int, idle_slots: int, stepping: int = 0) -> list[Delivery] | float:
        """The next batch; or the seconds to wait for more jobs, infinite where there is nothing to start.

        `running` jobs are being computed by other slots, and `stepping` take a step; `idle_slots` could start a batch now, the caller's
        included."""
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

        patience = self._patience(steps, waiting, running)
        if patience:
            if self._patient_since is None:
                self._patient_since = now
            if now < self._patient_since + patience:
                return self._patient_since + patience - now
        return self._take(bucket, size)

    def clear(self) -> list[Delivery]:
        """Takes everything that waits, to be handed back."""
        jobs = [job for bucket in self._buckets.values() for job in bucket]
        self._buckets.clear()
        return jobs

    def _most_urgent(self) -> Bucket:
        return min(self._buckets, key=lambda bucket: due(self._buckets[bucket][0]))

    def _patience(self, steps: StepTimes, here: int, running: int) -> float:
        """Seconds that waiting for the missing jobs may last: what one batch instead of two saves. 0 where it cannot pay."""
        missing = min(steps.best - here, self.arrivals.missing(len(self) + running))
        if missing <= 0 or len(self._buckets) > 1:
            return 0.0
        saved = steps.predict(here) + steps.predict(missing) - steps.predict(here + missing)
        return saved if missing * self.arrivals.gap < saved else 0.0

    def _take(self, bucket: Bucket, size: int) -> list[Delivery]:
        self._patient_since = None
        jobs = self._buckets.pop(bucket)
        batch, rest = jobs[:size], jobs[size:]
        if rest:
            self._buckets[bucket] = rest
        return batch
