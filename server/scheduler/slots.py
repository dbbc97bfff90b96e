"""Where the threads of a worker meet: one lock around the scheduler, and whom to wake when."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from math import inf
from typing import NamedTuple

from server.queue.worker.delivery import Delivery
from server.scheduler.scheduler import Pull, Running, Scheduler
from server.scheduler.step_times import StepTimes


class Finish(NamedTuple):
    """Tasks of a thread after a batch."""

    idle: bool
    """Whether no batch waits for it."""
    leaving: list[Delivery]
    """Jobs to hand back: the worker drains, and these would not come to their end."""


class SlotWork(Future[None]):
    """Work for the thread of a slot that no client waits for, as to prepare kernels for the stream on which batches run."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__()
        self._work = work

    def run(self) -> None:
        """Do the work. Its errors are raised by `result`."""
        try:
            self.set_result(self._work())
        except BaseException as error:
            self.set_exception(error)


class Slots:
    """Any thread does what is next, so that a job that comes while nothing runs is computed by the thread that found it: to wake another
    one takes longer than to read the job. A thread that takes something wakes one more, for what may be left to take.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.count = scheduler.slots
        self._scheduler = scheduler
        scheduler.last_look = time.monotonic()
        self._lock = threading.RLock()
        self._to_do = threading.Condition(self._lock)
        self._step_to_do = threading.Condition(self._lock)
        self._ended = threading.Condition(self._lock)
        """A batch or a look has ended."""
        self._intake_ended = False
        self._stopped = False
        self._work: deque[SlotWork] = deque()

    def next(self) -> Running | Pull | SlotWork | None:
        """A batch to run, or a look at the queue; blocks until it is time for one. None once the worker is drained.

        After a look `looked` is to be called, after a batch `finish`."""
        with self._lock:
            while not self._stopped:
                if self._work:
                    self._wake_one()
                    return self._work.popleft()
                task = self._scheduler.next(time.monotonic())
                if not isinstance(task, float):
                    self._wake_one()
                    return task
                if self._intake_ended and not len(self._scheduler.short):
                    self._wake_all()  # it is so for all
                    return None
                self._to_do.wait(min(task, threading.TIMEOUT_MAX))
            return None

    def next_step(self, wait: bool = True) -> Running | None:
        """The same of steps of long jobs. Without `wait` None also says that there is none now."""
        with self._lock:
            while not self._stopped:
                step = self._scheduler.next_step(time.monotonic())
                if step is not None:
                    self._wake_one()
                    return step
                if self._intake_ended and not len(self._scheduler.long):
                    self._wake_all()
                    return None
                if not wait:
                    return None
                self._step_to_do.wait()
            return None

    def looked(self, found: list[Delivery]) -> None:
        """The look has ended. What it has found is for whoever calls `next` first: that should be the caller."""
        with self._lock:
            self._scheduler.add(found, time.monotonic())
            self._scheduler.looking = False
            self._ended.notify_all()
            if len(self._scheduler.long):
                self._step_to_do.notify()  # the caller takes none

    def add(self, deliveries: list[Delivery]) -> None:
        """Jobs that come by other ways than a look."""
        with self._lock:
            self._scheduler.add(deliveries, time.monotonic())
            self._wake_one()

    @property
    def looking(self) -> bool:
        return self._scheduler.looking

    def await_look(self, seconds: float) -> None:
        """Wait until the look that is under way has ended, if there is one."""
        with self._lock:
            self._ended.wait_for(lambda: not self._scheduler.looking, seconds)

    def fetching(self, queue: str, count: int) -> None:
        """So many more jobs of this queue (fewer: negative) have been taken and wait for their payload."""
        with self._lock:
            self._scheduler.fetching += Counter({queue: count})
            self._wake_one()

    @property
    def may_reclaim(self) -> bool:
        """Whether a job of a dead worker may be taken over."""
        with self._lock:
            return self._scheduler.may_reclaim

    def finish(self, running: Running, going_on: Sequence[Delivery] = ()) -> Finish:
        """The batch has ended, or has taken a step, and these of its jobs go on."""
        with self._lock:
            now = time.monotonic()
            self._scheduler.finish(running, going_on, now)
            self._ended.notify_all()
            self._wake_one()
            return Finish(idle=not len(self._scheduler.short), leaving=self._scheduler.leaving(now))

    def measured(self, running: Running, size: int, seconds: float) -> None:
        """A batch of `size`, or a part of one, took `seconds`."""
        with self._lock:
            self._scheduler.measured(running, size, seconds)

    def too_large(self, running: Running, size: int) -> None:
        """A batch of `size`, or a part of one, did not fit into memory."""
        with self._lock:
            self._scheduler.too_large(running, size)

    def forget_times(self, running: Running) -> None:
        """Learn the times of a bucket anew: another backend runs its batches from now on."""
        with self._lock:
            self._scheduler.forget_times(running)

    def expect(self, steps: StepTimes, *, long: bool = False, step_seconds: float = 0.0) -> None:
        """Expect a loaded bundle's batches to take these times. long: its jobs take several steps; step_seconds: time of one step."""
        with self._lock:
            self._scheduler.expect(steps, long=long, step_seconds=step_seconds)

    def run_in_slot(self, run: Callable[[], None]) -> None:
        """Let the thread of a slot do some work, and wait for its end. There is one thread more than slots, so that batches go on."""
        work = SlotWork(run)
        with self._lock:
            self._work.append(work)
            self._to_do.notify()
        work.result()

    def drain(self, seconds: float = inf) -> list[Delivery]:
        """Pull nothing more; run what is here. Returns those jobs of several steps that cannot end within so many seconds."""
        with self._lock:
            now = time.monotonic()
            self._scheduler.ends_by = now + seconds
            self._wake_all()
            return self._scheduler.leaving(now)

    def intake_ended(self) -> None:
        """The receiver has delivered its last job."""
        with self._lock:
            self._intake_ended = True
            self._wake_all()

    def stop(self) -> list[Delivery]:
        """Start nothing more. Returns every job that waits or runs, to be handed back."""
        with self._lock:
            self._stopped = True
            self._wake_all()
            return self._scheduler.clear() + [job for running in self._scheduler.running for job in running.jobs]

    @property
    def silence(self) -> float:
        """Seconds without progress: of the slot that has been silent longest or, when idle, since the last look at the queue."""
        with self._lock:
            if self._scheduler.running:
                return time.monotonic() - min(running.progressed for running in self._scheduler.running)
            return 0.0 if self._intake_ended else time.monotonic() - self._scheduler.last_look

    @property
    def slowest(self) -> float:
        """Seconds of the slowest batch seen, in a slot or in a warm-up."""
        return self._scheduler.slowest

    def _wake_one(self) -> None:
        """If there may be something to do for it."""
        if len(self._scheduler.short) or not self._scheduler.looking:
            self._to_do.notify()
        if len(self._scheduler.long):
            self._step_to_do.notify()

    def _wake_all(self) -> None:
        for condition in (self._to_do, self._step_to_do, self._ended):
            condition.notify_all()
