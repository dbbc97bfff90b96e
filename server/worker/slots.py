"""Where the threads of a worker meet: the jobs that wait, the batches that run, and one lock around both."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf

from server.queue.delivery import Delivery
from server.worker.batcher import Batcher, Bucket
from server.worker.budget import StepTimes

LEAD = 0.01
"""Seconds before the predicted end of a batch at which the next one is pulled and decoded: late enough that other workers could
take the jobs and that many have come, early enough that the device need not wait."""
POLL = 0.003
"""Seconds between two looks at the queue while there is something to run but the next batch is not full."""


@dataclass(frozen=True)
class Pull:
    """How the receiver should look at the queue now."""

    items: int
    block: bool
    """Whether to wait for jobs: only where a slot is idle, else a job could land in a busy worker while another is free."""


@dataclass(eq=False)
class Running:
    """A batch in a slot."""

    jobs: list[Delivery]
    bucket: Bucket
    started: float
    """Monotonic seconds."""
    expected_end: float
    progressed: float = field(default=0.0)
    """When the slot last finished a part of it."""

    def __post_init__(self) -> None:
        self.progressed = self.started


class Slots:
    """`count` batches may run at once."""

    def __init__(self, count: int, batcher: Batcher) -> None:
        self.count = count
        self._batcher = batcher
        self._changed = threading.Condition()
        self._running: list[Running] = []
        self._budget = 1
        """The size of a typical batch."""
        self._last_look = time.monotonic()
        self._draining = False
        self._hushed = False
        """Whether the receiver wants nothing to start."""
        self._intake_ended = False
        self._stopped = False
        self.slowest = 0.0
        """Seconds of the slowest batch seen, in a slot or in a warm-up."""

    def next_pull(self) -> Pull | None:
        """For the receiver: blocks until it is time to look at the queue. None once the worker drains."""
        with self._changed:
            while not self._draining:
                now = time.monotonic()
                at = self._time_to_look()
                if now < at:
                    self._changed.wait(None if at == inf else at - now)
                    continue
                self._last_look = now
                idle = self.count - len(self._running)
                return Pull(self._batcher.room(self._budget, idle), block=idle > 0 and not len(self._batcher))
            return None

    def add(self, deliveries: list[Delivery]) -> None:
        with self._changed:
            self._batcher.arrivals.came(len(deliveries), time.monotonic())
            for delivery in deliveries:
                self._batcher.add(delivery)
            self._changed.notify_all()

    @property
    def may_reclaim(self) -> bool:
        """Whether a job of a dead worker may be taken over: one at a time."""
        with self._changed:
            return not self._draining and not self._lone_job()

    @contextmanager
    def quiet(self) -> Iterator[bool]:
        """Inside the `with` block nothing runs and nothing starts; it waits for what runs. False: the worker drains.

        What is claimed there runs next and by itself, so it is never charged with the death that another batch causes."""
        with self._changed:
            self._hushed = True
            while self._running and not self._draining:
                self._changed.wait()
            quiet = not self._draining
        try:
            yield quiet
        finally:
            with self._changed:
                self._hushed = False
                self._changed.notify_all()

    def take(self) -> Running | None:
        """For a slot: blocks until a batch should start. None once the worker is drained."""
        with self._changed:
            while not self._stopped:
                now = time.monotonic()
                batch = inf if self._hushed or self._lone_job_runs() else self._next(now)
                if not isinstance(batch, float):
                    return self._start(batch, now)
                if self._intake_ended and not len(self._batcher):
                    return None
                self._changed.wait(None if batch == inf else batch)
            return None

    def progress(self, running: Running) -> None:
        """A part of the batch was finished."""
        with self._changed:
            running.progressed = time.monotonic()

    def finish(self, running: Running) -> bool:
        """Returns whether nothing waits for the slot."""
        with self._changed:
            self._batcher.arrivals.under_way(len(self._batcher) + self._jobs_running())
            self._running.remove(running)
            self.slowest = max(self.slowest, time.monotonic() - running.started)
            self._changed.notify_all()
            return not len(self._batcher)

    def measured(self, bucket: Bucket, size: int, seconds: float) -> None:
        """A batch of `size` took `seconds`."""
        with self._changed:
            steps = self._batcher.step_times(bucket)
            steps.record(size, seconds)
            self._budget = steps.best

    def too_large(self, bucket: Bucket, size: int) -> None:
        with self._changed:
            self._batcher.step_times(bucket).out_of_memory(size)

    def drain(self) -> None:
        """Pull nothing more; run what is here."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()

    def intake_ended(self) -> None:
        """The receiver has delivered its last job."""
        with self._changed:
            self._intake_ended = True
            self._changed.notify_all()

    def stop(self) -> list[Delivery]:
        """Start nothing more. Returns every job that waits or runs, to be handed back."""
        with self._changed:
            self._draining = self._stopped = True
            self._changed.notify_all()
            return self._batcher.clear() + [job for running in self._running for job in running.jobs]

    def expect(self, steps: StepTimes) -> None:
        """What a warm-up has measured."""
        with self._changed:
            self.slowest = max(self.slowest, steps.slowest)
            self._budget = max(self._budget, steps.best)

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits here."""
        with self._changed:
            return not self._running and not len(self._batcher)

    @property
    def silence(self) -> float:
        """Seconds without progress: of the slot that has been silent longest or, when idle, since the last look at the queue."""
        with self._changed:
            if self._running:
                return time.monotonic() - min(running.progressed for running in self._running)
            return 0.0 if self._intake_ended else time.monotonic() - self._last_look

    def _next(self, now: float) -> list[Delivery] | float:
        return self._batcher.next(now, running=self._jobs_running(), idle_slots=self.count - len(self._running))

    def _start(self, jobs: list[Delivery], now: float) -> Running:
        bucket = Bucket.of(jobs[0])
        running = Running(jobs, bucket, now, now + self._batcher.step_times(bucket).predict(len(jobs)))
        self._running.append(running)
        self._changed.notify_all()
        return running

    def _time_to_look(self) -> float:
        """Monotonic seconds; infinite until something changes."""
        idle = self.count - len(self._running)
        if self._lone_job() or not self._batcher.room(self._budget, idle):
            return inf
        if idle:
            return self._last_look + POLL if len(self._batcher) else -inf
        return max(self._last_look + POLL, min(running.expected_end for running in self._running) - LEAD)

    def _jobs_running(self) -> int:
        return sum(len(running.jobs) for running in self._running)

    def _lone_job(self) -> bool:
        return self._batcher.has_lone_job or self._lone_job_runs()

    def _lone_job_runs(self) -> bool:
        return any(running.bucket.alone for running in self._running)
