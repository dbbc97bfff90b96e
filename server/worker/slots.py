"""Where the threads of a worker meet: the jobs that wait, the batches that run, and one lock around both."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from math import inf

from server.queue.delivery import Delivery
from server.worker.batcher import Batcher
from server.worker.batches import CROWDED_BLOCK, LONG_BLOCK, POLL, Finish, Pull, Running
from server.worker.bucket import Bucket
from server.worker.budget import StepTimes
from server.worker.long_work import MOST_LONE, LongWork, Share


class Slots:
    """`count` batches of short jobs may run at once, as many steps of long ones beside them, and one thread may look at the queue.
    state_bytes: bound for what long jobs keep between their steps.

    Short work does not wait for steps: threads of low priority take them, so that the system gives a batch nearly all of a CPU that both
    want. Where that leaves long work less than a quarter of the device, one batch fewer runs for a while.
    Any other thread does what is next, so that a job that comes while nothing runs is computed by the thread that found it: to wake another
    one takes longer than to read the job. Whoever takes something wakes one more, for what may be left to take.
    """

    def __init__(self, count: int, batcher: Batcher, long: LongWork | None = None, state_bytes: int = sys.maxsize) -> None:
        """long: the jobs of several steps; None: there are none."""
        self.count = count
        self._short = batcher
        self._long = LongWork(batcher.step_times, dict) if long is None else long  # an empty one is falsy
        self._state_bytes = state_bytes
        self._lock = threading.RLock()
        self._to_do = threading.Condition(self._lock)
        self._step_to_do = threading.Condition(self._lock)
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
        self._intake_ended = False
        self._stopped = False
        self._share = Share(count)
        """Of long work."""
        self._lent = 0
        """Slots that serve nothing for a while."""
        self.slowest = 0.0
        """Seconds of the slowest batch seen, in a slot or in a warm-up."""

    def next(self, wait: bool = True, looks: bool | None = None) -> Running | Pull | None:
        """A batch to run, or a look at the queue; blocks until it is time for one. None once the worker is drained or, without `wait`, if
        there is no batch now. Without `looks` only batches count. After a look `looked` is to be called, after a batch `finish`."""
        with self._lock:
            while not self._stopped:
                now = time.monotonic()
                batch = self._next_batch(now)
                if not isinstance(batch, float):
                    return self._start(batch, now, long=False)
                if self._intake_ended and not len(self._short):
                    self._wake_all()  # it is so for all
                    return None
                pull = self._pull() if (wait if looks is None else looks) and not self._looking and not self._draining else None
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

    def next_step(self, wait: bool = True) -> Running | None:
        """The same of steps of long jobs."""
        with self._lock:
            while not self._stopped:
                jobs = self._next_step()
                if jobs:
                    return self._start(jobs, time.monotonic(), long=True)
                if self._intake_ended and not len(self._long):
                    self._wake_all()
                    return None
                if not wait:
                    return None
                self._step_to_do.wait()
            return None

    def looked(self, found: list[Delivery]) -> None:
        """The look has ended. What it has found is for whoever calls `next` first: that should be the caller."""
        with self._lock:
            self._add(found)
            self._looking = False
            self._ended.notify_all()
            if len(self._long):
                self._step_to_do.notify()  # the caller takes none

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
            return not self._draining and not self._lone_job() and self._long.lone < MOST_LONE

    def progress(self, running: Running) -> None:
        """A part of the batch was finished."""
        with self._lock:
            running.progressed = time.monotonic()

    def finish(self, running: Running, going_on: list[Delivery] | None = None) -> Finish:
        """The batch has ended, or has taken a step, and these of its jobs go on."""
        with self._lock:
            now = time.monotonic()
            self._running.remove(running)
            if running.long:
                self._share.had(min(now - running.started, running.expected_end - running.started or inf))
                self._long.stepped(running.bucket, len(running.jobs), going_on or [], now)
            else:
                self._short.arrivals.under_way(len(self._short) + len(running.jobs) + self._jobs_running(long=False))
            self.slowest = max(self.slowest, now - running.started)
            self._ended.notify_all()
            self._wake_one()
            return Finish(idle=not len(self._short), leaving=self._leaving(now))

    def measured(self, running: Running, size: int, seconds: float) -> None:
        """A batch of `size`, or a part of one, took `seconds`."""
        with self._lock:
            if running.long and running.disturbed:
                return  # sizes that are run beside short work would be known with it, others without, and the budget would go to and fro
            steps = self._short.step_times(running.bucket)
            steps.record(size, seconds)
            if not running.long:
                self._budget = steps.target  # where a larger one is to be measured, as many must be pulled

    def too_large(self, bucket: Bucket, size: int) -> None:
        with self._lock:
            self._short.step_times(bucket).out_of_memory(size)

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
            return [*self._short.clear(), *self._long.clear()] + [job for running in self._running for job in running.jobs]

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
            return not self._running and not self._waiting

    def lend(self) -> None:
        """Wait until a slot of each kind is free; from now on one fewer serves, until `take_back`."""
        with self._lock:
            self._lent += 1
            self._ended.wait_for(lambda: min(self._idle_slots(long=False), self._idle_slots(long=True)) >= 0 or self._stopped)

    def take_back(self) -> None:
        """A slot that was lent serves again."""
        with self._lock:
            self._lent -= 1
            self._wake_one()

    @property
    def _steps_go_on(self) -> bool:
        """Whether no step waits for short work: that must go on, then."""
        return not self._short.has_lone_job and not self._short.due < self._long.lone_due < inf

    @property
    def _has_long_work(self) -> bool:
        return bool(len(self._long)) or any(running.long for running in self._running)

    @property
    def _waiting(self) -> int:
        """Number of jobs that wait, those of several steps included."""
        return len(self._short) + len(self._long)

    def _idle_slots(self, *, long: bool) -> int:
        """Negative while what is lent still runs something."""
        return self.count - self._lent - sum(running.long == long for running in self._running)

    def _jobs_running(self, *, long: bool) -> int:
        return sum(len(running.jobs) for running in self._running if running.long == long)

    @property
    def silence(self) -> float:
        """Seconds without progress: of the slot that has been silent longest or, when idle, since the last look at the queue."""
        with self._lock:
            if self._running:
                return time.monotonic() - min(running.progressed for running in self._running)
            return 0.0 if self._intake_ended else time.monotonic() - self._last_look

    def _next_batch(self, now: float) -> list[Delivery] | float:
        idle = self._idle_slots(long=False) - (self._share.is_owed(now, present=self._has_long_work) and self._steps_go_on)
        if idle <= 0 or self._lone_job_runs() or self._long.lone_due < self._short.due:
            return inf
        return self._short.next(now, running=self._jobs_running(long=False), stepping=self._jobs_running(long=True), idle_slots=idle)

    def _next_step(self) -> list[Delivery]:
        if self._idle_slots(long=True) <= 0 or self._lone_job_runs() or self._short.has_lone_job:
            return []
        if self._long.lone_due != inf and (self._running or self._short.due < self._long.lone_due):
            return []
        return self._long.next(slots=self.count)

    def _start(self, jobs: list[Delivery], now: float, *, long: bool) -> Running:
        bucket = Bucket.of(jobs[0])
        expected_end = now + self._short.step_times(bucket).predict(len(jobs))
        running = Running(jobs, bucket, now, expected_end, long)
        for other in self._running:
            if other.long != long:
                other.disturbed = running.disturbed = True
        self._running.append(running)
        self._wake_one()
        return running

    def _add(self, deliveries: list[Delivery]) -> None:
        if not deliveries:
            return
        short = [delivery for delivery in deliveries if not self._long.takes(delivery)]
        if short:
            self._short.arrivals.came(len(short), time.monotonic())
        for delivery in deliveries:
            (self._long if self._long.takes(delivery) else self._short).add(delivery)
        self._last_look = time.monotonic()  # so the next look leaves Python's lock to the batch that they start

    def _wake_one(self) -> None:
        """If there may be something to do for it."""
        if len(self._short) or not self._looking:
            self._to_do.notify()
        if len(self._long):
            self._step_to_do.notify()

    def _wake_all(self) -> None:
        self._to_do.notify_all()
        self._step_to_do.notify_all()
        self._ended.notify_all()

    def _leaving(self, now: float) -> list[Delivery]:
        return self._long.leaving(now, self._ends_by, self.count) if self._draining else []

    def _pull(self) -> Pull:
        idle = max(0, self._idle_slots(long=False))
        long = self._long.rooms(self.count, self._state_bytes)
        short = self._short.room(self._budget, idle)
        if self._fetching:
            short -= sum(count for queue, count in self._fetching.items() if queue not in long)
            long = {queue: max(0, room - self._fetching[queue]) for queue, room in long.items()}
        # who waits there waits for those that have place now; what is being fetched, or steps where no more fit, takes it for a while
        waits = idle > 0 and not len(self._short) and not self._fetching
        return Pull(max(0, short), long, block=0.0 if not waits else LONG_BLOCK if all(long.values()) else CROWDED_BLOCK)

    def _time_to_look(self, pull: Pull) -> float:
        """Monotonic seconds; infinite until something changes."""
        if self._lone_job() or not pull.useful:
            return inf
        if pull.block:
            return -inf
        if self._idle_slots(long=False) > 0:
            return self._last_look + POLL
        starts = (max(self._last_look + POLL, running.look_from) for running in self._running if not running.long)
        return min(starts, default=self._last_look + CROWDED_BLOCK)

    def _lone_job(self) -> bool:
        """Whether a short job waits or runs that must run alone.

        Steps of long ones do not count: they follow each other at once, so that short jobs would never be found between them."""
        return self._short.has_lone_job or any(running.bucket.alone and not running.long for running in self._running)

    def _lone_job_runs(self) -> bool:
        return any(running.bucket.alone for running in self._running)
