"""Batches of jobs of several steps, and the number of them to pull. Pure data: no threads, no clock of its own.

The rule: the bucket whose most urgent job has waited longest for its step runs, after the delay of its priority. Up to the budget, its
batch takes the jobs whose last step is longest ago first, and jobs with few remaining steps go ahead of others by a few steps
(`_yielded_steps`). So new jobs join at the next step, short ones end soon, and all jobs make progress.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from math import ceil, inf
from typing import Protocol

from server.queue.messages import PRIORITY_DELAY_S
from server.queue.worker.delivery import Delivery
from server.scheduler.batcher import Bucket, StepTimes

MAX_RESIDENT_BUDGETS = 4
"""Maximum number of jobs in a worker, in batch budgets: more would only make each of them slower."""
MAX_START_SHARE = 0.5
"""Maximum share of a step's budget for starting jobs, beyond the first one, so that jobs that have started are not held up."""
QUICK_START_JOBS = 0.25
"""A job whose start costs less than this (in typical jobs) does not delay others."""
BUDGET_SLACK_JOBS = 0.05
"""Typical jobs by which a step may exceed the budget, so that jobs that wait for frames, and cost almost nothing, displace no other."""
UNMEASURED_STEP_S = 1e-9
"""Assumed duration of a step that has not been measured."""


class Residency(Protocol):
    """Progress and states of the jobs of a bundle (`Stepwise`)."""

    @property
    def nbytes(self) -> int:
        """Total size of the states in bytes."""

    @property
    def residents(self) -> Sized:
        """The states."""

    @property
    def state_bytes(self) -> int:
        """Expected size of one more state in bytes."""

    @property
    def start_seconds(self) -> float:
        """Time in seconds to start a job, before its first step."""

    def weight(self, job: Delivery) -> float:
        """Return the cost of the job's next step, in typical jobs."""

    def remaining(self, job: Delivery) -> int | None:
        """Return the number of remaining steps, None before the job has started."""


@dataclass(frozen=True)
class WaitingJob:
    """A job that waits for its next step."""

    delivery: Delivery
    since: float
    """Time at which its last step ended or, before the first, at which it was pulled. Its time in the queue does not count: while the queue
    is long, it would put new jobs ahead of all that have started."""

    @property
    def due(self) -> float:
        return self.since + PRIORITY_DELAY_S[self.delivery.job.priority]


LONG_WORK_SHARE = 0.25
"""Guaranteed share of the device's time for long jobs."""
MAX_LAG_S = 2.0
"""Time by which long jobs may fall behind that share, so that a burst of short jobs does not wait."""


class LongWorkShare:
    """An account of the device time that long jobs have used and are owed."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._behind_s = 0.0
        """Time owed, in steps of one slot."""
        self._now = -inf

    def record_step(self, seconds: float) -> None:
        """Record a step. seconds: its duration if nothing else runs."""
        self._behind_s = max(-MAX_LAG_S, self._behind_s - seconds)

    def is_behind(self, now: float, *, present: bool) -> bool:
        """Return whether too much time is owed. present: whether there are long jobs; nothing is owed for a time without any."""
        self._behind_s = self._behind_s + LONG_WORK_SHARE * self._slots * (now - self._now) if present and self._now > -inf else 0.0
        self._now = now if present else -inf
        return self._behind_s > MAX_LAG_S


class StepBatcher:
    def __init__(self, step_times: Callable[[Bucket], StepTimes], residencies: Callable[[], Mapping[str, Residency]]) -> None:
        """Start empty. residencies: of the stepwise bundles, by queue."""
        self._step_times = step_times
        self._residencies = residencies
        self._waiting: dict[Bucket, list[WaitingJob]] = {}
        """No list is empty."""
        self._running: Counter[Bucket] = Counter()
        """Number of jobs in a step."""
        self._latest: dict[str, Bucket] = {}
        """Bucket of the last step, by queue: its budget decides how many jobs to pull."""

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def exclusive_count(self) -> int:
        """Number of jobs that must run alone."""
        return sum(bool(bucket.alone) for bucket in {*self._waiting, *self._running})

    def add(self, delivery: Delivery) -> None:
        self._waiting.setdefault(Bucket.from_delivery(delivery), []).append(WaitingJob(delivery, delivery.pulled_at))

    @property
    def exclusive_urgency(self) -> float:
        """Urgency (`Batcher.due`) of the next step if its job must run alone, else infinite."""
        bucket = self._most_urgent() if self._waiting else None
        return min(job.due for job in self._waiting[bucket]) if bucket is not None and bucket.alone else inf

    def next(self, *, slots: int) -> list[Delivery]:
        """Remove and return the next step's batch, empty if nothing waits. A job that must run alone may start only if nothing runs."""
        if not self._waiting:
            return []
        bucket = self._most_urgent()
        jobs = self._waiting.pop(bucket)
        batch = self._batch(bucket, jobs, slots)
        chosen = set(map(id, batch))
        if rest := [job for job in jobs if id(job) not in chosen]:
            self._waiting[bucket] = rest
        self._running[bucket] += len(batch)
        self._latest[bucket.queue] = bucket
        return [job.delivery for job in batch]

    def finish_step(self, bucket: Bucket, size: int, unfinished: Sequence[Delivery], now: float) -> None:
        """End the step of a batch of `size`. unfinished: its jobs that have more steps."""
        self._running -= Counter({bucket: size})
        for delivery in unfinished:
            self._waiting.setdefault(bucket, []).append(WaitingJob(delivery, now))

    def capacities(self, slots: int, state_bytes: int) -> dict[str, int]:
        """Return how many jobs to pull, by queue: at most one budget per slot, within `MAX_RESIDENT_BUDGETS` and the memory for states.

        state_bytes: limit of the states of all bundles. An empty worker always has capacity for one job."""
        residencies = self._residencies()
        if not residencies:
            return {}
        counts = {queue: self._resident_count(queue) for queue in residencies}
        used = sum(it.nbytes + (counts[queue] - len(it.residents)) * it.state_bytes for queue, it in residencies.items())
        capacities = {}
        for queue, residency in residencies.items():
            budget = self._step_times(self._latest.get(queue, Bucket(queue, ""))).best * slots
            capacity = min(budget, MAX_RESIDENT_BUDGETS * budget - counts[queue])
            if residency.state_bytes:
                capacity = min(capacity, int((state_bytes - used) // residency.state_bytes))
            capacities[queue] = max(capacity, 0 if any(counts.values()) else 1)
        return capacities

    def take_unfinishable(self, now: float, until: float, slots: int) -> list[Delivery]:
        """Remove and return the jobs that cannot finish by `until`. Those with the fewest remaining steps are kept first."""
        residencies = self._residencies()
        waiting = [
            (_remaining(residencies.get(bucket.queue), job.delivery), bucket, job) for bucket, jobs in self._waiting.items() for job in jobs
        ]
        waiting.sort(key=lambda entry: entry[0])
        finishable: dict[Bucket, list[WaitingJob]] = {}
        unfinishable = []
        for remaining, bucket, job in waiting:
            finishable.setdefault(bucket, []).append(job)
            if now + remaining * max(self._round_duration_s(finishable), UNMEASURED_STEP_S) / slots > until:
                finishable[bucket].remove(job)
                unfinishable.append(job.delivery)
        self._waiting = {bucket: jobs for bucket, jobs in finishable.items() if jobs}
        return unfinishable

    def clear(self) -> list[Delivery]:
        """Remove and return all waiting jobs."""
        deliveries = [job.delivery for jobs in self._waiting.values() for job in jobs]
        self._waiting.clear()
        return deliveries

    def _batch(self, bucket: Bucket, jobs: list[WaitingJob], slots: int) -> list[WaitingJob]:
        """Return the jobs that take this step: at least one, within the budget and a slot's share of the bucket."""
        steps, residency = self._step_times(bucket), self._residencies().get(bucket.queue)
        budget = steps.target if len(jobs) >= steps.target else steps.best
        step = steps.predict(budget)
        start = residency.start_seconds * budget / step if residency is not None and step else 0.0  # in typical jobs, like the budget
        start = start if start > QUICK_START_JOBS else 0.0
        share = ceil((len(jobs) + self._running[bucket]) / slots)
        batch: list[WaitingJob] = []
        taken = starting = 0.0
        remaining = [_remaining(residency, job.delivery) for job in jobs]
        turns = [job.due + _yielded_steps(left) * step for job, left in zip(jobs, remaining, strict=True)]
        for index in sorted(range(len(jobs)), key=turns.__getitem__):
            job, is_new = jobs[index], remaining[index] == inf
            if is_new and starting and starting + start > MAX_START_SHARE * budget:
                continue
            weight = (1.0 if residency is None else residency.weight(job.delivery)) + (start if is_new else 0.0)
            if batch and taken + weight > budget + BUDGET_SLACK_JOBS:
                continue  # others may fit; this one comes first in a later step
            batch.append(job)
            taken += weight
            starting += start if is_new else 0.0
            if len(batch) == share:
                break
        return batch

    def _most_urgent(self) -> Bucket:
        return min(self._waiting, key=lambda bucket: min(job.due for job in self._waiting[bucket]))

    def _round_duration_s(self, waiting: Mapping[Bucket, list[WaitingJob]]) -> float:
        """Return the seconds until each of these jobs has taken a step."""
        total = 0.0
        for bucket, jobs in waiting.items():
            steps = self._step_times(bucket)
            total += ceil(len(jobs) / steps.best) * steps.predict(min(len(jobs), steps.best))
        return total

    def _resident_count(self, queue: str) -> int:
        waiting = sum(len(jobs) for bucket, jobs in self._waiting.items() if bucket.queue == queue)
        return waiting + sum(size for bucket, size in self._running.items() if bucket.queue == queue)


def _remaining(residency: Residency | None, job: Delivery) -> float:
    """Return the number of remaining steps, infinite if unknown: before the job has started."""
    remaining = residency.remaining(job) if residency is not None else None
    return inf if remaining is None else remaining


MAX_YIELDED_STEPS = 8
"""Maximum number of steps for which a job yields to jobs with fewer remaining steps. Each doubling of its own adds one."""


def _yielded_steps(remaining: float) -> int:
    """Return the number of steps for which a job yields to shorter ones, 0 before it has started."""
    return 0 if remaining == inf else min(MAX_YIELDED_STEPS, int(remaining).bit_length())
