"""Where the threads of a worker meet: the jobs that wait, the batches that run, and one lock around both."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

from server.queue.delivery import Delivery
from server.worker.batcher import Batcher
from server.worker.batches import CROWDED_POLL, POLL, Finish, Pull, Running
from server.worker.bucket import Bucket
from server.worker.budget import StepTimes
from server.worker.long_work import MOST_LONE


class Slots:
    """`count` batches may run at once, and one thread may look at the queue. state_bytes: bound for what jobs of several steps keep
    between them.

    Any thread does what is next, so that a job that comes while nothing runs is computed by the thread that found it: to wake another one
    takes longer than to read the job. Whoever takes something wakes one more, for what may be left to take.
    """

    def __init__(self, count: int, batcher: Batcher, state_bytes: int = sys.maxsize) -> None:
        self.count = count
        self._batcher = batcher
        self._state_bytes = state_bytes
        self._lock = threading.RLock()
        self._to_do = threading.Condition(self._lock)
        self._ended = threading.Condition(self._lock)
        """A batch or a look has ended."""
        self._looking = False
        """Whether a thread looks at the queue."""
        self._running: list[Running] = []
        self._fetching: Counter[str] = Counter()
        """Jobs that are here but for their payload, by queue."""
        self._budget = 1
        """The size of the next batch, as far as is known."""
        self._last_look = time.monotonic()
        self._draining = False
        self._ends_by = inf
        """Monotonic seconds by which a worker that drains ends."""
        self._hushed = False
        """Whether the receiver wants nothing to start."""
        self._intake_ended = False
        self._stopped = False
        self._lent = 0
        """Slots that serve nothing for a while."""
        self.slowest = 0.0
        """Seconds of the slowest batch seen, in a slot or in a warm-up."""

    def next(self, *, wait: bool = True, looks: bool = True) -> Running | Pull | None:
        """A batch to run, or a look at the queue; blocks until it is time for one. None once the worker is drained or, without `wait`, if
        there is none now. Without `looks` only batches count. After a look `looked` is to be called, after a batch `finish`."""
        with self._lock:
            while not self._stopped:
                now = time.monotonic()
                batch = self._next(now)
                if not isinstance(batch, float):
                    return self._start(batch, now)
                if self._intake_ended and not self._batcher.waiting:
                    self._wake_all()  # it is so for all
                    return None
                pull = self._pull() if looks and not self._looking and not self._draining else None
                look = inf if pull is None else self._time_to_look(pull) - now
                if pull is not None and look <= 0:
                    self._looking, self._last_look = True, now
                    self._wake_one()
                    return pull
                if not wait:
                    return None
                soonest = min(batch, look)
                self._to_do.wait(None if soonest == inf else soonest)
            return None

    def looked(self, found: list[Delivery]) -> None:
        """The look has ended. What it has found is for whoever calls `next` first: that should be the caller."""
        with self._lock:
            self._add(found)
            self._looking = False
            self._ended.notify_all()

    def add(self, deliveries: list[Delivery]) -> None:
        """Jobs that come by other ways than a look."""
        with self._lock:
            self._add(deliveries)
            self._wake_one()

    @property
    def looking(self) -> bool:
        return self._looking

    def await_look(self, seconds: float) -> None:
        """Wait until the look that is under way has ended, if there is one."""
        with self._lock:
            self._ended.wait_for(lambda: not self._looking, seconds)

    def fetching(self, queue: str, count: int) -> None:
        """So many more jobs of this queue (fewer: negative) have been taken and wait for their payload."""
        with self._lock:
            self._fetching[queue] += count
            if not self._fetching[queue]:
                del self._fetching[queue]
            self._wake_one()

    @property
    def may_reclaim(self) -> bool:
        """Whether a job of a dead worker may be taken over: one at a time, and a few that take several steps."""
        with self._lock:
            return not self._draining and not self._lone_job() and self._batcher.long.lone < MOST_LONE

    @contextmanager
    def quiet(self) -> Iterator[bool]:
        """Inside the `with` block nothing runs and nothing starts; it waits for what runs. False: the worker drains.

        What is claimed there runs next and by itself, so it is never charged with the death that another batch causes."""
        with self._lock:
            self._hushed = True
            while self._running and not self._draining:
                self._ended.wait()
            quiet = not self._draining
        try:
            yield quiet
        finally:
            with self._lock:
                self._hushed = False
                self._wake_one()

    def progress(self, running: Running) -> None:
        """A part of the batch was finished."""
        with self._lock:
            running.progressed = time.monotonic()

    def finish(self, running: Running, going_on: list[Delivery] | None = None) -> Finish:
        """The batch has ended, or has taken a step, and these of its jobs go on."""
        with self._lock:
            now = time.monotonic()
            seconds = now - running.started
            self._running.remove(running)
            if running.long:
                self._batcher.long.stepped(running.bucket, len(running.jobs), going_on or [], now, seconds)
            else:
                others = sum(len(other.jobs) for other in self._running if not other.long)
                self._batcher.arrivals.under_way(len(self._batcher) + len(running.jobs) + others)
                self._batcher.long.others_ran(seconds)
            self.slowest = max(self.slowest, seconds)
            self._ended.notify_all()
            leaving = self._leaving(now)
            if not running.long or leaving:  # else its thread comes for the next step at once
                self._wake_one()
            return Finish(idle=not self._batcher.waiting, leaving=leaving)

    def measured(self, bucket: Bucket, size: int, seconds: float) -> None:
        """A batch of `size` took `seconds`."""
        with self._lock:
            steps, long = self._batcher.step_times(bucket), self._batcher.long.is_long(bucket.queue)
            if long and self._batcher.long.courteous:
                return  # short work slows a step down: small ones would be known with it, large ones without
            steps.record(size, seconds)
            if not long:
                self._budget = steps.target  # where a larger one is to be measured, as many must be pulled

    def too_large(self, bucket: Bucket, size: int) -> None:
        with self._lock:
            self._batcher.step_times(bucket).out_of_memory(size)

    def drain(self, seconds: float = inf) -> list[Delivery]:
        """Pull nothing more; run what is here. Returns those jobs of several steps that cannot end within so many seconds."""
        with self._lock:
            now = time.monotonic()
            self._draining, self._ends_by = True, now + seconds
            self._wake_all()
            return self._leaving(now)

    def intake_ended(self) -> None:
        """The receiver has delivered its last job."""
        with self._lock:
            self._intake_ended = True
            self._wake_all()

    def stop(self) -> list[Delivery]:
        """Start nothing more. Returns every job that waits or runs, to be handed back."""
        with self._lock:
            self._draining = self._stopped = True
            self._wake_all()
            return self._batcher.clear() + [job for running in self._running for job in running.jobs]

    def expect(self, steps: StepTimes, *, long: bool = False) -> None:
        """What a warm-up has measured; long: of jobs that take several steps."""
        with self._lock:
            self.slowest = max(self.slowest, steps.slowest)
            if not long:
                self._budget = max(self._budget, steps.best)

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits here."""
        with self._lock:
            return not self._running and not self._batcher.waiting

    def lend(self) -> None:
        """Wait until a slot is free; from now on one fewer serves, until `take_back`."""
        with self._lock:
            self._lent += 1
            self._ended.wait_for(lambda: self._idle_slots >= 0 or self._stopped)

    def take_back(self) -> None:
        """A slot that was lent serves again."""
        with self._lock:
            self._lent -= 1
            self._wake_one()

    @property
    def _idle_slots(self) -> int:
        """Negative while what is lent still runs something."""
        return self.count - self._lent - len(self._running)

    @property
    def silence(self) -> float:
        """Seconds without progress: of the slot that has been silent longest or, when idle, since the last look at the queue."""
        with self._lock:
            if self._running:
                return time.monotonic() - min(running.progressed for running in self._running)
            return 0.0 if self._intake_ended else time.monotonic() - self._last_look

    def _next(self, now: float) -> list[Delivery] | float:
        if self._idle_slots <= 0 or self._hushed or self._lone_job_runs():
            return inf
        short = stepping = 0
        for running in self._running:
            if running.long:
                stepping += len(running.jobs)
            else:
                short += len(running.jobs)
        idle = self._idle_slots
        return self._batcher.next(now, running=short, stepping=stepping, idle_slots=idle, slots=self.count)

    def _start(self, jobs: list[Delivery], now: float) -> Running:
        bucket = Bucket.of(jobs[0])
        expected_end = now + self._batcher.step_times(bucket).predict(len(jobs))
        running = Running(jobs, bucket, now, expected_end, self._batcher.long.steps(bucket))
        self._running.append(running)
        self._wake_one()
        return running

    def _add(self, deliveries: list[Delivery]) -> None:
        if not deliveries:
            return
        short = sum(not self._batcher.long.takes(delivery) for delivery in deliveries)
        if short:
            self._batcher.arrivals.came(short, time.monotonic())
        for delivery in deliveries:
            self._batcher.add(delivery)
        self._last_look = time.monotonic()  # so the next look leaves Python's lock to the batch that they start

    def _wake_one(self) -> None:
        """If there may be something to do for it."""
        if self._batcher.waiting or not self._looking:
            self._to_do.notify()

    def _wake_all(self) -> None:
        self._to_do.notify_all()
        self._ended.notify_all()

    def _leaving(self, now: float) -> list[Delivery]:
        return self._batcher.long.leaving(now, self._ends_by, self.count) if self._draining else []

    def _pull(self) -> Pull:
        idle = max(0, self._idle_slots)
        long = self._batcher.long.rooms(self.count, self._state_bytes)
        short = self._batcher.room(self._budget, idle)
        if self._fetching:
            short -= sum(count for queue, count in self._fetching.items() if queue not in long)
            long = {queue: max(0, room - self._fetching[queue]) for queue, room in long.items()}
        # who waits there waits for those that have place now; what is being fetched, or steps where no more fit, takes it for a while
        return Pull(max(0, short), long, block=idle > 0 and not self._batcher.waiting and not self._fetching and all(long.values()))

    def _time_to_look(self, pull: Pull) -> float:
        """Monotonic seconds; infinite until something changes."""
        if self._lone_job() or not pull.useful:
            return inf
        if pull.block:
            return -inf
        if self._idle_slots > 0 or not self._running:
            return self._last_look + (POLL if self._batcher.waiting or self._fetching else CROWDED_POLL)
        return min(max(self._last_look + running.look_every, running.look_from) for running in self._running)

    def _lone_job(self) -> bool:
        """Whether a short job waits or runs that must run alone.

        Steps of long ones do not count: they follow each other at once, so that short jobs would never be found between them."""
        return self._batcher.has_lone_job or any(running.bucket.alone and not running.long for running in self._running)

    def _lone_job_runs(self) -> bool:
        return any(running.bucket.alone for running in self._running)
