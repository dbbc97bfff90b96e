"""Jobs of several steps: whose step is next, and how many jobs may be here. Pure data: no threads, no clock of its own.

The rule: the bucket runs whose most urgent member has waited longest for its step, handicap of its priority included; its batch takes those
members first whose last step is longest ago, up to the budget, and lets a job of fewer steps to come go before one of more, by a few steps
(`_patience`). So new jobs join at the next step, short ones end soon, and everybody moves on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import Protocol

from server.queue.messages import PRIORITY_DELAY_S
from server.queue.worker.delivery import Delivery
from server.scheduler.batcher import Bucket
from server.scheduler.step_times import StepTimes

HOARD = 4
"""At most so many budgets of jobs are in a worker: more would only make each of them slower."""
STARTING = 0.5
"""Share of the budget that may be spent on starting jobs in one step, beyond the first of them: what steps already is not kept from it."""
QUICK = 0.25
"""A start that takes less than so many usual jobs keeps no other out of the step."""
SLACK = 0.05
"""A step may weigh so many usual jobs more than the budget: those that wait for frames weigh next to nothing, and keep no other out."""
TINY = 1e-9
"""Seconds of a step that was never measured."""


class Residency(Protocol):
    """Tells how far the jobs of a bundle have come (`Stepwise`)."""

    @property
    def nbytes(self) -> int:
        """Bytes of all states."""

    @property
    def resident_count(self) -> int:
        """Number of states."""

    @property
    def state_bytes(self) -> int:
        """Bytes to expect of one more."""

    @property
    def start_seconds(self) -> float:
        """Seconds to start a job, before its first step."""

    def weight(self, job: Delivery) -> float:
        """Cost of its next step in usual jobs."""

    def remaining(self, job: Delivery) -> int | None:
        """Steps to take; None: it has not started."""


@dataclass(frozen=True)
class Member:
    """A job that waits for its next step."""

    delivery: Delivery
    since: float
    """When its last step ended or, before the first, when it was pulled. Its time in the queue made it be pulled sooner: counted here, too,
    it would keep those that step already from moving on for as long as the queue is long."""

    @property
    def due(self) -> float:
        return self.since + PRIORITY_DELAY_S[self.delivery.job.priority]


QUARTER = 0.25
"""The share of the device's time that long work has, ..."""
LAG = 2.0
"""... and it may be behind with it by so many seconds, so that a burst of short requests passes without waiting."""


class LongWorkShare:
    """The quarter of the device that long work has, over some time: whether it is behind with it."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._behind = 0.0
        """Seconds of steps in one slot."""
        self._now = -inf

    def had(self, seconds: float) -> None:
        """A step has ended that takes so long by itself."""
        self._behind = max(-LAG, self._behind - seconds)

    def is_owed(self, now: float, *, present: bool) -> bool:
        """`present`: there is long work; where there is none, nothing is owed."""
        self._behind = self._behind + QUARTER * self._slots * (now - self._now) if present and self._now > -inf else 0.0
        self._now = now if present else -inf
        return self._behind > LAG


class StepBatcher:
    def __init__(self, step_times: Callable[[Bucket], StepTimes], residencies: Callable[[], Mapping[str, Residency]]) -> None:
        """residencies: of the stepwise bundles, by queue."""
        self._step_times = step_times
        self._residencies = residencies
        self._waiting: dict[Bucket, list[Member]] = {}
        """No list is empty."""
        self._running: Counter[Bucket] = Counter()
        """Number of jobs in a step."""
        self._latest: dict[str, Bucket] = {}
        """By queue, the bucket that stepped last: its budget decides how many jobs to pull."""

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def lone(self) -> int:
        """Number of jobs that must run alone."""
        return sum(bool(bucket.alone) for bucket in {*self._waiting, *self._running})

    def add(self, delivery: Delivery) -> None:
        self._waiting.setdefault(Bucket.of(delivery), []).append(Member(delivery, delivery.pulled_at))

    @property
    def lone_due(self) -> float:
        """As `Batcher.due`, of the job that must run alone and whose step is next; infinite where there is none."""
        bucket = self._most_urgent() if self._waiting else None
        return min(member.due for member in self._waiting[bucket]) if bucket is not None and bucket.alone else inf

    def next(self, *, slots: int) -> list[Delivery]:
        """The next step's batch; empty where nothing waits. One that must run alone is for the caller to keep until nothing else runs."""
        if not self._waiting:
            return []
        bucket = self._most_urgent()
        members = self._waiting.pop(bucket)
        batch = self._batch(bucket, members, slots)
        chosen = set(map(id, batch))
        if rest := [member for member in members if id(member) not in chosen]:
            self._waiting[bucket] = rest
        self._running[bucket] += len(batch)
        self._latest[bucket.queue] = bucket
        return [member.delivery for member in batch]

    def stepped(self, bucket: Bucket, size: int, going_on: Sequence[Delivery], now: float) -> None:
        """A batch of `size` has taken its step; `going_on` wait for the next one."""
        self._running -= Counter({bucket: size})
        for job in going_on:
            self._waiting.setdefault(bucket, []).append(Member(job, now))

    def capacities(self, slots: int, state_bytes: int) -> dict[str, int]:
        """How many jobs to pull, by queue: one budget for each slot at a time, within what all slots can use and what memory allows.

        state_bytes: bound for the states of all bundles. An empty worker always has capacity for one job."""
        residencies = self._residencies()
        if not residencies:
            return {}
        here = {queue: self._here(queue) for queue in residencies}
        used = sum(it.nbytes + (here[queue] - it.resident_count) * it.state_bytes for queue, it in residencies.items())
        capacities = {}
        for queue, residency in residencies.items():
            budget = self._step_times(self._latest.get(queue, Bucket(queue, ""))).best * slots
            capacity = min(budget, HOARD * budget - here[queue])
            if residency.state_bytes:
                capacity = min(capacity, int((state_bytes - used) // residency.state_bytes))
            capacities[queue] = max(capacity, 0 if any(here.values()) else 1)
        return capacities

    def leaving(self, now: float, until: float, slots: int) -> list[Delivery]:
        """Takes those out that cannot come to their end by `until`, to be handed back; the shortest stay first."""
        residencies = self._residencies()
        waiting = [
            (_remaining(residencies.get(bucket.queue), member.delivery), bucket, member)
            for bucket, members in self._waiting.items()
            for member in members
        ]
        waiting.sort(key=lambda entry: entry[0])
        kept: dict[Bucket, list[Member]] = {}
        leaving = []
        for remaining, bucket, member in waiting:
            kept.setdefault(bucket, []).append(member)
            if now + remaining * max(self._round(kept), TINY) / slots > until:
                kept[bucket].remove(member)
                leaving.append(member.delivery)
        self._waiting = {bucket: members for bucket, members in kept.items() if members}
        return leaving

    def clear(self) -> list[Delivery]:
        """Takes everything that waits."""
        jobs = [member.delivery for members in self._waiting.values() for member in members]
        self._waiting.clear()
        return jobs

    def _batch(self, bucket: Bucket, members: list[Member], slots: int) -> list[Member]:
        """Those that take this step: what fits into the budget, and no more than a slot's share of the bucket. At least one."""
        steps, residency = self._step_times(bucket), self._residencies().get(bucket.queue)
        budget = steps.target if len(members) >= steps.target else steps.best
        step = steps.predict(budget)
        start = residency.start_seconds * budget / step if residency is not None and step else 0.0  # in usual jobs, as the budget
        start = start if start > QUICK else 0.0
        share = ceil((len(members) + self._running[bucket]) / slots)
        batch: list[Member] = []
        taken = starting = 0.0
        remaining = [_remaining(residency, member.delivery) for member in members]
        turns = [member.due + _patience(left) * step for member, left in zip(members, remaining, strict=True)]
        for index in sorted(range(len(members)), key=turns.__getitem__):
            member, fresh = members[index], remaining[index] == inf
            if fresh and starting and starting + start > STARTING * budget:
                continue
            weight = (1.0 if residency is None else residency.weight(member.delivery)) + (start if fresh else 0.0)
            if batch and taken + weight > budget + SLACK:
                continue  # others may fit; it comes first when its turn is longest ago
            batch.append(member)
            taken += weight
            starting += start if fresh else 0.0
            if len(batch) == share:
                break
        return batch

    def _most_urgent(self) -> Bucket:
        return min(self._waiting, key=lambda bucket: min(member.due for member in self._waiting[bucket]))

    def _round(self, kept: Mapping[Bucket, list[Member]]) -> float:
        """Seconds until each of these has taken a step."""
        total = 0.0
        for bucket, members in kept.items():
            steps = self._step_times(bucket)
            total += ceil(len(members) / steps.best) * steps.predict(min(len(members), steps.best))
        return total

    def _here(self, queue: str) -> int:
        waiting = sum(len(members) for bucket, members in self._waiting.items() if bucket.queue == queue)
        return waiting + sum(size for bucket, size in self._running.items() if bucket.queue == queue)


def _remaining(residency: Residency | None, job: Delivery) -> float:
    """Steps to take; infinite before it has started, as nobody knows."""
    remaining = residency.remaining(job) if residency is not None else None
    return inf if remaining is None else remaining


PATIENCE = 8
"""Most steps for which a job lets others go first that have fewer to come: one step more with each doubling of what it has to come."""


def _patience(remaining: float) -> int:
    """Steps for which a job lets shorter ones go first; none before it has started."""
    return 0 if remaining == inf else min(PATIENCE, int(remaining).bit_length())
