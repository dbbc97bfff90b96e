"""Synchronization of a worker's threads: one lock around the scheduler, and conditions that wake threads when there is work."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from math import inf
from typing import NamedTuple

from server.queue.worker.delivery import Delivery
from server.scheduler.batcher import StepTimes
from server.scheduler.scheduler import PullOrder, RunningBatch, Scheduler


class AfterBatch(NamedTuple):
    """Tasks of a thread after a batch."""

    is_idle: bool
    """Whether no short job waits."""
    unfinishable: list[Delivery]
    """Jobs to return to the queue, since they cannot finish before the draining worker ends."""


class SlotWork(Future[None]):
    """Background work for the thread of a slot, such as preparing kernels for the CUDA stream that runs batches."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__()
        self._work = work

    def run(self) -> None:
        """Do the work. `result` raises its errors."""
        try:
            self.set_result(self._work())
        except BaseException as error:
            self.set_exception(error)


class Slots:
    """A scheduler shared by threads: what is not explained here is that of `Scheduler`, under a lock.

    Any thread does what is next, so that a job that arrives while nothing runs is computed by the thread that pulled it: waking another
    one takes longer than reading the job. A thread that takes a task wakes one more, since there may be another task.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.count = scheduler.slots
        self._scheduler = scheduler
        scheduler.last_pull_at = time.monotonic()
        self._lock = threading.RLock()
        self._to_do = threading.Condition(self._lock)
        self._step_to_do = threading.Condition(self._lock)
        self._ended = threading.Condition(self._lock)
        """Notified when a batch or a pull has ended."""
        self._intake_ended = False
        self._stopped = False
        self._work: deque[SlotWork] = deque()

    def next(self) -> RunningBatch | PullOrder | SlotWork | None:
        """Block until there is a batch to run or the queue is to be pulled, and return it. Returns None once the worker is drained.

        Call `finish_pull` after a pull and `finish` after a batch."""
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
                    self._wake_all()
                    return None
                self._to_do.wait(min(task, threading.TIMEOUT_MAX))
            return None

    def next_step(self, wait: bool = True) -> RunningBatch | None:
        """Block until a step can run, and return it. Returns None once drained or, with `wait=False`, if there is no step now."""
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

    def finish_pull(self, found: list[Delivery]) -> None:
        """End a pull and add its jobs, which the next call of `next` returns: the caller should make it."""
        with self._lock:
            self._scheduler.add(found, time.monotonic())
            self._scheduler.is_pulling = False
            self._ended.notify_all()
            if len(self._scheduler.long):
                self._step_to_do.notify()  # the caller takes no steps

    def add(self, deliveries: list[Delivery]) -> None:
        """Add jobs that were not pulled, such as reclaimed ones."""
        with self._lock:
            self._scheduler.add(deliveries, time.monotonic())
            self._wake_one()

    @property
    def is_pulling(self) -> bool:
        return self._scheduler.is_pulling

    def wait_for_pull(self, seconds: float) -> None:
        """Wait for the end of the current pull, if there is one."""
        with self._lock:
            self._ended.wait_for(lambda: not self._scheduler.is_pulling, seconds)

    def count_pending_payloads(self, queue: str, count: int) -> None:
        """Count `count` more jobs of this queue (fewer if negative) whose payload is not here yet."""
        with self._lock:
            self._scheduler.payloads_pending += Counter({queue: count})
            self._wake_one()

    @property
    def may_reclaim(self) -> bool:
        with self._lock:
            return self._scheduler.may_reclaim

    def finish(self, running: RunningBatch, unfinished: Sequence[Delivery] = ()) -> AfterBatch:
        with self._lock:
            now = time.monotonic()
            self._scheduler.finish(running, unfinished, now)
            self._ended.notify_all()
            self._wake_one()
            return AfterBatch(is_idle=not len(self._scheduler.short), unfinishable=self._scheduler.take_unfinishable(now))

    def record_batch(self, running: RunningBatch, size: int, seconds: float) -> None:
        with self._lock:
            self._scheduler.record_batch(running, size, seconds)

    def record_out_of_memory(self, running: RunningBatch, size: int) -> None:
        with self._lock:
            self._scheduler.record_out_of_memory(running, size)

    def forget_times(self, running: RunningBatch) -> None:
        with self._lock:
            self._scheduler.forget_times(running)

    def seed_step_times(self, steps: StepTimes, *, long: bool = False, step_seconds: float = 0.0) -> None:
        with self._lock:
            self._scheduler.seed_step_times(steps, long=long, step_seconds=step_seconds)

    def run_in_slot(self, run: Callable[[], None]) -> None:
        """Run work in the thread of a slot and wait for it. There is one thread more than slots, so that batches go on."""
        work = SlotWork(run)
        with self._lock:
            self._work.append(work)
            self._to_do.notify()
        work.result()

    def drain(self, seconds: float = inf) -> list[Delivery]:
        """Stop pulling and run the jobs that are here. Returns the long jobs that cannot finish within `seconds`."""
        with self._lock:
            now = time.monotonic()
            self._scheduler.ends_by = now + seconds
            self._wake_all()
            return self._scheduler.take_unfinishable(now)

    def end_intake(self) -> None:
        """Record that the receiver has delivered its last job."""
        with self._lock:
            self._intake_ended = True
            self._wake_all()

    def stop(self) -> list[Delivery]:
        """Start nothing more. Returns all jobs that wait or run, to be returned to the queue."""
        with self._lock:
            self._stopped = True
            self._wake_all()
            return self._scheduler.clear() + [job for running in self._scheduler.running for job in running.jobs]

    @property
    def progress_age_s(self) -> float:
        """Time since the last progress of the slot without progress for longest or, while idle, since the last pull."""
        with self._lock:
            if self._scheduler.running:
                return time.monotonic() - min(running.last_progress_at for running in self._scheduler.running)
            return 0.0 if self._intake_ended else time.monotonic() - self._scheduler.last_pull_at

    @property
    def slowest_batch_s(self) -> float:
        return self._scheduler.slowest_batch_s

    def _wake_one(self) -> None:
        """Wake one waiting thread of each kind that may have work."""
        if len(self._scheduler.short) or not self._scheduler.is_pulling:
            self._to_do.notify()
        if len(self._scheduler.long):
            self._step_to_do.notify()

    def _wake_all(self) -> None:
        for condition in (self._to_do, self._step_to_do, self._ended):
            condition.notify_all()
