"""Threads of a worker at its slots, in random orders: each job ends once, and no thread sleeps while a job waits.

Batches are expected to take a minute and take parts of a millisecond: a thread that is not woken sleeps for that minute.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter

import pytest

from server.queue.worker.delivery import Delivery
from server.scheduler.batcher import StepTimes
from server.scheduler.scheduler import PullOrder, RunningBatch, Scheduler
from server.scheduler.slots import Slots
from tests.support.queue import delivery

PATIENCE = 30.0
MOMENT = 0.0005
JOBS = 250
LONG = "long@1"
MAX_STEPS = 5


class Steps:
    """A stepwise bundle as slots know it: the number of steps that each job has left."""

    nbytes = state_bytes = 0
    start_seconds = 0.0

    def __init__(self) -> None:
        self.residents: dict[str, int] = {}

    def weight(self, job: Delivery) -> float:
        return 1.0

    def remaining(self, job: Delivery) -> int | None:
        return self.residents.get(job.entry_id)

    def survives(self, job: Delivery) -> bool:
        """Take a step of a job; return True if it has more."""
        left = self.residents.pop(job.entry_id, 1 + job.added_ms % MAX_STEPS) - 1
        if left:
            self.residents[job.entry_id] = left
        return left > 0


class Trial:
    """A queue, the hands of a worker, and the thread that brings large messages."""

    def __init__(self, count: int, seed: int, barrier: threading.Barrier | None = None) -> None:
        """barrier: batches wait for each other at it, if given."""
        self.barrier = barrier
        steps = StepTimes(8)
        for size in (1, 2, 4, 8):
            steps.record(size, 60.0 * size)
        self.steps, long = Steps(), delivery(bundle=LONG).queue
        self.slots = Slots(Scheduler(count, lambda _bucket: steps, lambda: {long: self.steps}))
        self.changed = threading.Condition()
        self.queue: list[Delivery] = []
        self.orphans: list[Delivery] = []
        """Jobs of dead workers."""
        self.large: list[Delivery] = []
        self.closed = self.intake_ends = False
        self.under_way: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.faults: list[str] = []
        chances = [random.Random(f"{seed} {number}") for number in range(2 * count + 2)]
        hands = [threading.Thread(target=self._work, args=(chance,), daemon=True) for chance in chances[1 : count + 2]]
        hands += [threading.Thread(target=self._take_steps, args=(chance,), daemon=True) for chance in chances[count + 2 :]]
        self.threads = [*hands, threading.Thread(target=self._fetch, args=(chances[0],), daemon=True)]
        for thread in self.threads:
            thread.start()

    def ask(self, jobs: list[Delivery]) -> None:
        with self.changed:
            for job in jobs:
                (self.orphans if job.alone else self.queue).append(job)
            self.changed.notify_all()

    def wait_until(self, jobs: int) -> None:
        """Wait until this many jobs have ended."""
        with self.changed:
            self.changed.wait_for(lambda: self.faults or sum(self.ended.values()) >= jobs, PATIENCE)
            assert not self.faults, self.faults
            assert sum(self.ended.values()) >= jobs, "a thread sleeps"

    def drain(self) -> list[Delivery]:
        """Let go of all threads. Returns what was handed back."""
        leaving = self.slots.drain()
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self.slots.wait_for_pull(PATIENCE)
        with self.changed:
            self.intake_ends = True
            self.changed.notify_all()
        for thread in self.threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), f"{thread.name} sleeps"
        return leaving

    def _work(self, chance: random.Random) -> None:
        while (task := self.slots.next()) is not None:
            if isinstance(task, RunningBatch):
                self._compute(task, chance)
            else:
                self._look(task, chance)

    def _take_steps(self, chance: random.Random) -> None:
        ran = False
        while (running := (self.slots.next_step(wait=False) if ran else None) or self.slots.next_step()) is not None:
            ran = chance.random() < 0.5
            self._compute(running, chance)

    def _compute(self, running: RunningBatch, chance: random.Random) -> None:
        exclusive = bool(running.bucket.alone)
        kind = "steps" if running.long else "batches"
        self._count(**{kind: 1}, exclusive=exclusive)
        if self.barrier is not None:
            self._meet(self.barrier)
        _dawdle(chance)
        with self.changed:
            unfinished = [job for job in running.jobs if running.long and self.steps.survives(job)]
        self._count(**{kind: -1}, exclusive=-exclusive)
        self.slots.finish(running, unfinished)
        with self.changed:
            self.ended.update(job.entry_id for job in running.jobs if job not in unfinished)
            self.changed.notify_all()
        _dawdle(chance)

    def _meet(self, others: threading.Barrier) -> None:
        try:
            others.wait(PATIENCE)
        except threading.BrokenBarrierError:
            self.faults.append("a slot stays empty while a job waits")

    def _look(self, pull: PullOrder, chance: random.Random) -> None:
        self._count(looks=1)
        found: list[Delivery] = []
        if self.orphans and self.slots.may_reclaim:
            self.slots.add([self.orphans.pop()])
        else:
            found = self._pull(pull)
        large = [job for job in found if job.added_ms % 7 == 0]
        for job in large:
            self.slots.count_pending_payloads(job.queue, 1)
        with self.changed:
            self.large += large
            self.changed.notify_all()
        _dawdle(chance)
        self._count(looks=-1)
        self.slots.finish_pull([job for job in found if job not in large])

    def _pull(self, pull: PullOrder) -> list[Delivery]:
        rooms = {"": pull.items, **pull.long}
        found = []
        with self.changed:
            if pull.block_s:
                self.changed.wait_for(lambda: self.closed or self.queue or self.orphans, PATIENCE)
            for job in tuple(self.queue):
                room = job.queue if job.queue in rooms else ""
                if rooms[room] > 0:
                    rooms[room] -= 1
                    self.queue.remove(job)
                    found.append(job)
        return found

    def _fetch(self, chance: random.Random) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.large or self.intake_ends)
                if not self.large:
                    break
                job = self.large.pop()
            _dawdle(chance)
            self.slots.add([job])
            self.slots.count_pending_payloads(job.queue, -1)
        self.slots.end_intake()

    def _count(self, **changes: int) -> None:
        """Add to the number of batches, steps and looks under way, and check their limits."""
        with self.changed:
            self.under_way.update(changes)
            batches, steps, exclusive, looks = (self.under_way[name] for name in ("batches", "steps", "exclusive", "looks"))
            if max(batches, steps) > self.slots.count or looks > 1 or (exclusive and batches + steps > 1):
                self.faults.append(f"{batches} batches and {steps} steps, {exclusive} of them exclusive, and {looks} looks at once")


def _dawdle(chance: random.Random) -> None:
    if chance.random() < 0.7:
        time.sleep(chance.choice([0.0, chance.random() * MOMENT]))


def _jobs(chance: random.Random) -> list[Delivery]:
    """Draw the jobs that arrive at one moment."""
    made = [delivery(bundle=chance.choice([LONG, "tiny@1"]), bucket=chance.choice("ab")) for _ in range(chance.choice([1, 1, 1, 2, 5, 20]))]
    return [*made, delivery(bundle=chance.choice([LONG, "tiny@1"]), alone=True)] if chance.random() < 0.2 else made


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_job_ends_once_and_no_thread_oversleeps(count: int, seed: int) -> None:
    chance, trial, count_requested = random.Random(seed), Trial(count, seed), 0
    while count_requested < JOBS:
        jobs = _jobs(chance)
        trial.ask(jobs)
        count_requested += len(jobs)
        if chance.random() < 0.5:
            trial.wait_until(count_requested)
        else:
            _dawdle(chance)
    if chance.random() < 0.5:
        trial.wait_until(count_requested)
    handed_back = trial.drain()
    assert not trial.faults, trial.faults
    assert set(trial.ended.values()) == {1}
    assert len(trial.ended) + len(handed_back) + len(trial.queue) + len(trial.orphans) == count_requested


@pytest.mark.parametrize("count", [2, 3])
def test_running_batches_equal_slots_for_waiting_jobs(count: int) -> None:
    chance, trial = random.Random(count), Trial(count, 0, threading.Barrier(count))
    for turn in range(1, 51):
        jobs, first = [delivery(bucket=str(bucket)) for bucket in range(count)], chance.randrange(count)
        trial.ask(jobs[:first])
        trial.ask(jobs[first:])
        trial.wait_until(turn * count)
    trial.drain()
    assert set(trial.ended.values()) == {1}
