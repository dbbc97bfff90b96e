"""A worker's next batch, step, or look at the queue. Pure data: no threads, no clock of its own.

Jobs of one forward pass are *short* and wait in a `Batcher`, jobs of several steps are *long* and wait in a `StepBatcher`. The rules:

- As many batches of short jobs run at once as there are slots, and as many steps of long ones beside them. So short work does not wait for
  steps: threads of low priority take them, so that the system gives a batch nearly all of a CPU that both want.
- Where that leaves long work more than `LAG` seconds behind with its quarter of the device, one batch fewer runs for a while.
- A job that must run alone starts when nothing runs, and nothing starts beside it. Between two of its steps others take their turns.
- The queue is looked at by one thread at a time: at once, and waiting there, while a slot is idle and no short job waits; else shortly
  before the next batch is to start. What is pulled fills one batch for each idle slot, or the next one.
- A worker that drains looks no more. It runs what is here, but for long jobs that cannot end in time: these leave between two steps.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from server.queue.worker.delivery import Delivery
from server.scheduler.batcher import Batcher, Bucket
from server.scheduler.step_batcher import LongWorkShare, Residency, StepBatcher
from server.scheduler.step_times import StepTimes

LEAD = 0.01
"""Seconds before the predicted end of a batch at which the next one is pulled and decoded: late enough that other workers could
take the jobs and that many have come, early enough that the device need not wait."""
POLL = 0.003
"""Seconds between two looks at the queue while there is something to run but the next batch is not full."""
LONG_BLOCK = 0.5
"""Seconds for which a worker waits at the queue."""
CROWDED_BLOCK = 0.03
"""The same while there is no room for more jobs of several steps: what waits there is not noticed."""
MOST_LONE = 4
"""At most so many long jobs that must run alone are in a worker: each of their steps stops all others."""


class Pull(NamedTuple):
    """How to look at the queue now."""

    items: int
    """Short jobs, over all their queues."""
    long: Mapping[str, int]
    """Jobs of several steps, by queue."""
    block: float
    """Seconds to wait for jobs: only where a slot is idle, else a job could land in a busy worker while another is free."""


@dataclass(eq=False)
class Running:
    """A batch in a slot. Times are monotonic seconds."""

    jobs: list[Delivery]
    bucket: Bucket
    started: float
    expected_end: float
    long: bool
    """Whether it is a step of jobs that take several."""
    progressed: float
    """When the slot last finished a part of it."""
    disturbed: bool = False
    """Whether a batch and a step ran beside each other."""


class Scheduler:
    def __init__(
        self,
        slots: int,
        step_times: Callable[[Bucket], StepTimes],
        residencies: Callable[[], Mapping[str, Residency]] = dict,
        state_bytes: int = sys.maxsize,
    ) -> None:
        """residencies: of the stepwise bundles, by queue. state_bytes: bound for what long jobs keep between their steps."""
        self.slots = slots
        self.short = Batcher(step_times)
        self.long = StepBatcher(step_times, residencies)
        self.running: list[Running] = []
        self.fetching: Counter[str] = Counter()
        """Jobs that are here but for their payload, by queue."""
        self.looking = False
        """Whether a thread looks at the queue."""
        self.last_look = -inf
        self.ends_by: float | None = None
        """Monotonic seconds by which a worker that drains ends; None: it does not drain."""
        self.slowest = 0.0
        """Seconds of the slowest batch seen, in a slot or in a warm-up."""
        self._step_times = step_times
        self._residencies = residencies
        self._state_bytes = state_bytes
        self._share = LongWorkShare(slots)
        self._budget = 1
        """The size of the next batch, as far as is known."""

    def next(self, now: float) -> Running | Pull | float:
        """A batch that starts now, else a look at the queue; or the seconds until there may be one, infinite until something changes."""
        batch = self.next_batch(now)
        if isinstance(batch, Running):
            return batch
        look = self.next_look(now)
        return look if isinstance(look, Pull) else min(batch, look)

    def next_batch(self, now: float) -> Running | float:
        """The batch that starts now; or the seconds until one may be due, infinite until something changes."""
        idle = self.idle_slots(long=False)
        if self._share.is_owed(now, present=bool(len(self.long)) or any(running.long for running in self.running)):
            steps_wait = self.short.has_lone_job or self.short.due < self.long.lone_due < inf  # for short work, which must go on then
            idle -= not steps_wait
        if idle <= 0 or self._lone_job_runs or self.long.lone_due < self.short.due:
            return inf
        jobs = self.short.next(now, running=self._jobs_running(long=False), stepping=self._jobs_running(long=True), idle_slots=idle)
        return jobs if isinstance(jobs, float) else self._start(jobs, now, long=False)

    def next_step(self, now: float) -> Running | None:
        """The step that starts now, if there is one."""
        if self.idle_slots(long=True) <= 0 or self._lone_job_runs or self.short.has_lone_job:
            return None
        if self.long.lone_due != inf and (self.running or self.short.due < self.long.lone_due):
            return None
        jobs = self.long.next(slots=self.slots)
        return self._start(jobs, now, long=True) if jobs else None

    def next_look(self, now: float) -> Pull | float:
        """How to look at the queue now; or the seconds until it is to be looked at, infinite until something changes."""
        if self.looking or self.ends_by is not None or self._has_lone_job:
            return inf
        pull = self._pull()
        if not pull.items and not any(pull.long.values()):
            return inf
        if not pull.block:
            at = self.last_look + POLL
            if self.idle_slots(long=False) <= 0:
                ends = [running.expected_end for running in self.running if not running.long]
                at = max(at, min(ends) - LEAD) if ends else self.last_look + CROWDED_BLOCK
            if at > now:
                return at - now
        self.looking, self.last_look = True, now
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
            self.short.arrivals.came(short, now)
        if deliveries:
            self.last_look = now  # so the next look leaves Python's lock to the batch that they start

    def finish(self, running: Running, going_on: Sequence[Delivery], now: float) -> None:
        """The batch has ended, or has taken a step, and these of its jobs go on."""
        self.running.remove(running)
        if running.long:
            self._share.had(min(now - running.started, running.expected_end - running.started or inf))
            self.long.stepped(running.bucket, len(running.jobs), going_on, now)
        else:
            self.short.arrivals.under_way(len(self.short) + len(running.jobs) + self._jobs_running(long=False))
        self.slowest = max(self.slowest, now - running.started)

    def measured(self, running: Running, size: int, seconds: float) -> None:
        """A batch of `size`, or a part of one, took `seconds`."""
        if running.long and running.disturbed:
            return  # sizes that are run beside short work would be known with it, others without, and the budget would go to and fro
        steps = self._step_times(running.bucket)
        steps.record(size, seconds)
        if not running.long:
            self._budget = steps.target  # where a larger one is to be measured, as many must be pulled

    def forget_times(self, running: Running) -> None:
        """Learn the times of a bucket anew: another backend runs its batches from now on."""
        self._step_times(running.bucket).forget()

    def too_large(self, running: Running, size: int) -> None:
        """A batch of `size`, or a part of one, did not fit into memory."""
        self._step_times(running.bucket).out_of_memory(size)

    def expect(self, steps: StepTimes, *, long: bool, step_seconds: float = 0.0) -> None:
        """Expect a loaded bundle's batches to take these times. long: its jobs take several steps; step_seconds: time of one step."""
        self.slowest = max(self.slowest, *steps.seconds.values(), step_seconds)
        if not long:
            self._budget = max(self._budget, steps.best)

    def leaving(self, now: float) -> list[Delivery]:
        """Takes out the long jobs that will not come to their end here, to be handed back."""
        return [] if self.ends_by is None else self.long.leaving(now, self.ends_by, self.slots)

    def clear(self) -> list[Delivery]:
        """Takes out all that waits, and ends."""
        self.ends_by = inf
        return [*self.short.clear(), *self.long.clear()]

    @property
    def may_reclaim(self) -> bool:
        """Whether a job of a dead worker may be taken over: one at a time, and a few that take several steps."""
        return self.ends_by is None and not self._has_lone_job and self.long.lone < MOST_LONE

    def idle_slots(self, long: bool) -> int:
        """Return the number of slots without a batch or, if `long`, without a step."""
        return self.slots - sum(running.long == long for running in self.running)

    def _start(self, jobs: list[Delivery], now: float, *, long: bool) -> Running:
        bucket = Bucket.of(jobs[0])
        expected_end = now + self._step_times(bucket).predict(len(jobs))
        running = Running(jobs, bucket, now, expected_end, long, progressed=now)
        for other in self.running:
            if other.long != long:
                other.disturbed = running.disturbed = True
        self.running.append(running)
        return running

    def _pull(self) -> Pull:
        idle = max(0, self.idle_slots(long=False))
        long = self.long.capacities(self.slots, self._state_bytes)
        short = self.short.capacity(self._budget, idle)
        if self.fetching:
            short -= sum(count for queue, count in self.fetching.items() if queue not in long)
            long = {queue: max(0, most - self.fetching[queue]) for queue, most in long.items()}
        # who waits there waits for those that have place now; what is being fetched, or steps where no more fit, takes it for a while
        waits = idle > 0 and not len(self.short) and not self.fetching
        return Pull(max(0, short), long, block=0.0 if not waits else LONG_BLOCK if all(long.values()) else CROWDED_BLOCK)

    def _jobs_running(self, *, long: bool) -> int:
        return sum(len(running.jobs) for running in self.running if running.long == long)

    @property
    def _has_lone_job(self) -> bool:
        """Whether a short job waits or runs that must run alone.

        Steps of long ones do not count: they follow each other at once, so that short jobs would never be found between them."""
        return self.short.has_lone_job or any(running.bucket.alone and not running.long for running in self.running)

    @property
    def _lone_job_runs(self) -> bool:
        return any(running.bucket.alone for running in self.running)
