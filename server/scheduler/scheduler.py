"""Choice of a worker's next batch, step or pull from the queue. Pure data: no threads, no clock of its own.

Jobs of one forward pass are *short* and wait in a `Batcher`, jobs of several steps are *long* and wait in a `StepBatcher`. The rules:

- Each slot runs one batch of short jobs and, at the same time, one step of long jobs. So short jobs do not wait for steps: these run in
  threads of low priority, and the system gives a batch nearly all of a CPU that both use.
- If that leaves long jobs more than `MAX_LAG_S` behind their share of the device (`LONG_WORK_SHARE`), one batch fewer runs for a while.
- A job that must run alone starts when nothing runs, and nothing starts while it runs. Other jobs run between its steps.
- One thread at a time pulls from the queue. It pulls at once and blocks there while a slot is idle and no short job waits, otherwise it
  pulls shortly before the next batch is to start. A pull fills one batch for each idle slot, or the next batch.
- A worker that drains pulls nothing more. It runs its jobs, except long ones that cannot finish in time: they leave between two steps.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from server.queue.worker.delivery import Delivery
from server.scheduler.batcher import Batcher, Bucket, StepTimes
from server.scheduler.step_batcher import LongWorkShare, Residency, StepBatcher

PREFETCH_LEAD_S = 0.01
"""Time before the predicted end of a batch at which the next one is pulled and decoded: late enough for other workers to take the
jobs and for many to arrive, early enough that the device does not wait."""
POLL_INTERVAL_S = 0.003
"""Time between two pulls while jobs can run but the next batch is not full."""
IDLE_BLOCK_S = 0.5
"""Time for which a pull blocks if the queue is empty."""
FULL_BLOCK_S = 0.03
"""Time for which a pull blocks while no more long jobs fit: jobs in their queues do not end it."""
MAX_EXCLUSIVE_JOBS = 4
"""Maximum number of long jobs in a worker that must run alone: each of their steps stops all other jobs."""


class PullOrder(NamedTuple):
    """Numbers of jobs to pull now."""

    items: int
    """Short jobs, over all their queues."""
    long: Mapping[str, int]
    """Long jobs, by queue."""
    block_s: float
    """Time to block for jobs: 0 unless a slot is idle, so that a busy worker does not take jobs while another one is idle."""


@dataclass(eq=False)
class RunningBatch:
    """A batch in a slot. Times are monotonic seconds."""

    jobs: list[Delivery]
    bucket: Bucket
    started: float
    expected_end: float
    long: bool
    """Whether it is a step of long jobs."""
    last_progress_at: float
    """Time at which the slot last finished a part of it."""
    has_overlapped: bool = False
    """Whether a batch and a step ran at the same time."""


class Scheduler:
    def __init__(
        self,
        slots: int,
        step_times: Callable[[Bucket], StepTimes],
        residencies: Callable[[], Mapping[str, Residency]] = dict,
        state_bytes: int = sys.maxsize,
    ) -> None:
        """Start empty. residencies: of the stepwise bundles, by queue. state_bytes: limit of the states that long jobs keep."""
        self.slots = slots
        self.short = Batcher(step_times)
        self.long = StepBatcher(step_times, residencies)
        self.running: list[RunningBatch] = []
        self.payloads_pending: Counter[str] = Counter()
        """Numbers of pulled jobs whose payload is not here yet, by queue."""
        self.is_pulling = False
        """Whether a thread pulls from the queue."""
        self.last_pull_at = -inf
        self.ends_by: float | None = None
        """Monotonic time by which a draining worker ends; None if it does not drain."""
        self.slowest_batch_s = 0.0
        """Duration of the slowest batch so far, in a slot or in a warm-up."""
        self._step_times = step_times
        self._residencies = residencies
        self._state_bytes = state_bytes
        self._share = LongWorkShare(slots)
        self._budget = 1
        """Expected size of the next batch."""

    def next(self, now: float) -> RunningBatch | PullOrder | float:
        """Start a batch, else a pull; or return the seconds until either may be due, infinite until something changes."""
        batch = self.next_batch(now)
        if isinstance(batch, RunningBatch):
            return batch
        pull = self.next_pull(now)
        return pull if isinstance(pull, PullOrder) else min(batch, pull)

    def next_batch(self, now: float) -> RunningBatch | float:
        """Start a batch, or return the seconds until one may be due, infinite until something changes."""
        idle = self.idle_slots(long=False)
        if self._share.is_behind(now, present=bool(len(self.long)) or any(running.long for running in self.running)):
            steps_wait = self.short.has_exclusive_job or self.short.due < self.long.exclusive_urgency < inf
            idle -= not steps_wait  # if steps wait for short jobs, these must go on
        if idle <= 0 or self._exclusive_job_runs or self.long.exclusive_urgency < self.short.due:
            return inf
        jobs = self.short.next(now, running=self._jobs_running(long=False), stepping=self._jobs_running(long=True), idle_slots=idle)
        return jobs if isinstance(jobs, float) else self._start(jobs, now, long=False)

    def next_step(self, now: float) -> RunningBatch | None:
        """Start the next step, if one can start now."""
        if self.idle_slots(long=True) <= 0 or self._exclusive_job_runs or self.short.has_exclusive_job:
            return None
        if self.long.exclusive_urgency != inf and (self.running or self.short.due < self.long.exclusive_urgency):
            return None
        jobs = self.long.next(slots=self.slots)
        return self._start(jobs, now, long=True) if jobs else None

    def next_pull(self, now: float) -> PullOrder | float:
        """Start a pull, or return the seconds until one is due, infinite until something changes."""
        if self.is_pulling or self.ends_by is not None or self._has_exclusive_job:
            return inf
        pull = self._pull()
        if not pull.items and not any(pull.long.values()):
            return inf
        if not pull.block_s:
            at = self.last_pull_at + POLL_INTERVAL_S
            if self.idle_slots(long=False) <= 0:
                ends = [running.expected_end for running in self.running if not running.long]
                at = max(at, min(ends) - PREFETCH_LEAD_S) if ends else self.last_pull_at + FULL_BLOCK_S
            if at > now:
                return at - now
        self.is_pulling, self.last_pull_at = True, now
        return pull

    def add(self, deliveries: list[Delivery], now: float) -> None:
        short, stepwise = 0, self._residencies()
        for delivery in deliveries:
            if delivery.queue in stepwise:
                self.long.add(delivery)
            else:
                self.short.add(delivery)
                short += 1
        if short:
            self.short.arrivals.record(short, now)
        if deliveries:
            self.last_pull_at = now  # so that the next pull leaves the GIL to the batch that they start

    def finish(self, running: RunningBatch, unfinished: Sequence[Delivery], now: float) -> None:
        """End a batch or a step. unfinished: its jobs that have more steps."""
        self.running.remove(running)
        if running.long:
            self._share.record_step(min(now - running.started, running.expected_end - running.started or inf))
            self.long.finish_step(running.bucket, len(running.jobs), unfinished, now)
        else:
            self.short.arrivals.record_in_flight(len(self.short) + len(running.jobs) + self._jobs_running(long=False))
        self.slowest_batch_s = max(self.slowest_batch_s, now - running.started)

    def record_batch(self, running: RunningBatch, size: int, seconds: float) -> None:
        """Record that a batch of `size`, or a part of one, took `seconds`."""
        if running.long and running.has_overlapped:
            return  # steps that overlap short batches take longer: mixed with undisturbed ones, they would make the budget oscillate
        steps = self._step_times(running.bucket)
        steps.record(size, seconds)
        if not running.long:
            self._budget = steps.target  # to measure a larger batch, as many jobs must be pulled

    def forget_times(self, running: RunningBatch) -> None:
        """Forget the times of a bucket, whose batches another backend runs from now on."""
        self._step_times(running.bucket).forget()

    def record_out_of_memory(self, running: RunningBatch, size: int) -> None:
        """Record that a batch of `size`, or a part of one, did not fit into memory."""
        self._step_times(running.bucket).out_of_memory(size)

    def seed_step_times(self, steps: StepTimes, *, long: bool, step_seconds: float = 0.0) -> None:
        """Expect batches of a loaded bundle to take these times. long: whether its jobs take several steps. step_seconds: of one step."""
        self.slowest_batch_s = max(self.slowest_batch_s, *steps.seconds.values(), step_seconds)
        if not long:
            self._budget = max(self._budget, steps.best)

    def take_unfinishable(self, now: float) -> list[Delivery]:
        """Remove and return the long jobs that cannot finish before a draining worker ends."""
        return [] if self.ends_by is None else self.long.take_unfinishable(now, self.ends_by, self.slots)

    def clear(self) -> list[Delivery]:
        """Remove and return all waiting jobs, and pull no more."""
        self.ends_by = inf
        return [*self.short.clear(), *self.long.clear()]

    @property
    def may_reclaim(self) -> bool:
        """Whether a job of a dead worker may be taken over: one short job at a time, or a few long ones."""
        return self.ends_by is None and not self._has_exclusive_job and self.long.exclusive_count < MAX_EXCLUSIVE_JOBS

    def idle_slots(self, long: bool) -> int:
        """Return the number of slots without a batch or, if `long`, without a step."""
        return self.slots - sum(running.long == long for running in self.running)

    def _start(self, jobs: list[Delivery], now: float, *, long: bool) -> RunningBatch:
        bucket = Bucket.from_delivery(jobs[0])
        expected_end = now + self._step_times(bucket).predict(len(jobs))
        running = RunningBatch(jobs, bucket, now, expected_end, long, last_progress_at=now)
        for other in self.running:
            if other.long != long:
                other.has_overlapped = running.has_overlapped = True
        self.running.append(running)
        return running

    def _pull(self) -> PullOrder:
        idle = max(0, self.idle_slots(long=False))
        long = self.long.capacities(self.slots, self._state_bytes)
        short = self.short.capacity(self._budget, idle)
        if self.payloads_pending:
            short -= sum(count for queue, count in self.payloads_pending.items() if queue not in long)
            long = {queue: max(0, capacity - self.payloads_pending[queue]) for queue, capacity in long.items()}
        # a pull that blocks keeps its limits: they are out of date once pending payloads have arrived or steps have ended
        blocks = idle > 0 and not len(self.short) and not self.payloads_pending
        return PullOrder(max(0, short), long, block_s=0.0 if not blocks else IDLE_BLOCK_S if all(long.values()) else FULL_BLOCK_S)

    def _jobs_running(self, *, long: bool) -> int:
        return sum(len(running.jobs) for running in self.running if running.long == long)

    @property
    def _has_exclusive_job(self) -> bool:
        """Whether a short job that must run alone waits or runs.

        Steps of long jobs do not count: they follow each other at once, so that no short job would ever be pulled."""
        return self.short.has_exclusive_job or any(running.bucket.alone and not running.long for running in self.running)

    @property
    def _exclusive_job_runs(self) -> bool:
        return any(running.bucket.alone for running in self.running)
