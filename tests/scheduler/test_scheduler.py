"""Decisions of a scheduler about what a worker does next, on a clock of the test's own."""

from __future__ import annotations

from typing import Any

import pytest

from server.queue.worker.delivery import Delivery
from server.scheduler.batcher import StepTimes
from server.scheduler.scheduler import FULL_BLOCK_S, IDLE_BLOCK_S, MAX_EXCLUSIVE_JOBS, PREFETCH_LEAD_S, PullOrder, RunningBatch, Scheduler
from server.scheduler.step_batcher import LONG_WORK_SHARE, MAX_LAG_S
from tests.support.queue import delivery


def step_times(seconds: float) -> StepTimes:
    steps = StepTimes(8)
    for size in (1, 2, 4, 8):
        steps.record(size, seconds)
    return steps


def scheduler(slots: int = 1, seconds: float = 5.0) -> Scheduler:
    """Batches of up to 8 that are expected to take `seconds`."""
    steps = step_times(seconds)
    made = Scheduler(slots, lambda _bucket: steps)
    made.seed_step_times(steps, long=False)
    return made


class Steps:
    """A stepwise bundle of which nothing has started, with small states."""

    nbytes = state_bytes = 0
    residents = ()
    start_seconds = 0.0

    def weight(self, job: Delivery) -> float:
        return 1.0

    def remaining(self, job: Delivery) -> int | None:
        return None


class LargeSteps(Steps):
    """A stepwise bundle whose states leave no memory for another one."""

    state_bytes = 1_000


def stepping(slots: int = 1, seconds: float = 0.001, residency: Steps | None = None) -> Scheduler:
    steps, resident = step_times(seconds), residency or Steps()
    queue = delivery(bundle="long@1").queue
    return Scheduler(slots, lambda _bucket: steps, lambda: {queue: resident}, state_bytes=1_000)


def long_job(**about: Any) -> Delivery:
    return delivery(bundle="long@1", **about)


def take(made: Scheduler, now: float = 0.0) -> RunningBatch | None:
    """Return the batch that starts. None if there is none."""
    batch = made.next_batch(now)
    return batch if isinstance(batch, RunningBatch) else None


def look(made: Scheduler, *found: Delivery, now: float = 1.0) -> PullOrder:
    """Pull, find these jobs, and return the order."""
    task = made.next_pull(now)
    assert isinstance(task, PullOrder)
    made.is_pulling = False
    made.add(list(found), now)
    return task


def test_an_idle_worker_waits_at_the_queue_for_one_batch() -> None:
    pull = look(scheduler())
    assert (pull.items, pull.block_s) == (8, IDLE_BLOCK_S)


def test_one_thread_looks_at_a_time() -> None:
    made = scheduler()
    assert isinstance(made.next(0.0), PullOrder) and isinstance(made.next(0.0), float)


def test_what_is_found_runs_and_is_looked_for_meanwhile() -> None:
    made, job = scheduler(slots=2), delivery()
    look(made, job)
    running = made.next(1.0)
    assert isinstance(running, RunningBatch) and running.jobs == [job]
    assert look(made).block_s == IDLE_BLOCK_S


def test_another_backend_of_a_bucket_starts_its_times_again() -> None:
    steps = StepTimes(8)
    steps.record(4, 0.1)
    made = Scheduler(1, lambda _bucket: steps)
    made.add([delivery()], 0.0)
    running = made.next(1.0)
    assert isinstance(running, RunningBatch)
    made.forget_times(running)
    assert (steps.best, steps.seconds, steps.target) == (1, {}, 2)


def test_busy_worker_polls_only_shortly_before_batch_ends() -> None:
    made = scheduler(seconds=0.2)
    made.add([delivery()], 0.0)
    assert take(made)
    until = made.next_pull(0.0)
    assert until == pytest.approx(0.2 - PREFETCH_LEAD_S)
    pull = look(made, now=0.2 - PREFETCH_LEAD_S)
    assert (pull.items, pull.block_s) == (8, 0)


def test_no_more_batches_run_than_there_are_slots() -> None:
    made = scheduler(seconds=0.0)
    made.add([delivery(bucket="a"), delivery(bucket="b")], 0.0)
    running = take(made)
    assert running and not take(made)
    made.finish(running, [], 0.1)
    assert take(made)


class TestAlone:
    def test_a_reclaimed_job_has_the_whole_worker_to_itself(self) -> None:
        made, orphan = scheduler(slots=2), delivery(alone=True)
        made.add([orphan, delivery()], 0.0)
        exclusive = take(made)
        assert exclusive and exclusive.jobs == [orphan]
        assert not made.may_reclaim and not take(made)
        made.finish(exclusive, [], 0.1)
        assert made.may_reclaim and take(made)

    def test_what_is_claimed_runs_next_and_alone(self) -> None:
        """Else the death that another batch causes would be charged to what only waited here."""
        made, others, orphan = scheduler(slots=2), [delivery(), delivery(bucket="b")], delivery(alone=True)
        made.add(others[:1], 0.0)
        running = take(made)
        assert running
        made.add([orphan, *others[1:]], 0.0)
        assert not take(made), "a batch runs, and what is claimed comes first"
        made.finish(running, [], 0.1)
        exclusive = take(made)
        assert exclusive and exclusive.jobs == [orphan]
        assert not take(made)

    def test_few_of_several_steps_are_in_a_worker_at_a_time(self) -> None:
        made = stepping()
        for _ in range(MAX_EXCLUSIVE_JOBS):
            assert made.may_reclaim
            made.add([long_job(alone=True)], 0.0)
        assert not made.may_reclaim

    def test_one_of_several_steps_lets_the_worker_go_on_between_them(self) -> None:
        made, exclusive, short = stepping(slots=2), long_job(alone=True), delivery(queued_at=5.0)
        made.add([exclusive], 0.0)
        running = made.next_step(0.0)
        assert running and running.jobs == [exclusive]
        made.add([short], 6.0)
        assert not take(made, 6.0), "nothing starts while its step runs"
        made.finish(running, [exclusive], 7.0)
        between = take(made, 7.0)
        assert between and between.jobs == [short]
        assert not made.next_step(7.0), "its step waits until nothing runs"
        made.add([delivery(queued_at=60.0)], 60.0)
        assert not take(made, 60.0), "and what came later waits for it"
        made.finish(between, [], 61.0)
        again = made.next_step(61.0)
        assert again and again.jobs == [exclusive]

    def test_worker_polls_short_jobs_during_step_of_long_one(self) -> None:
        made, exclusive = stepping(), long_job(alone=True)
        made.add([exclusive], 0.0)
        for now in (1.0, 2.0, 3.0):
            running = made.next_step(now)
            assert running and running.jobs == [exclusive]
            assert look(made, now=now).items > 0
            made.finish(running, [exclusive], now)


class TestDraining:
    def test_claims_nothing(self) -> None:
        made = scheduler()
        assert made.may_reclaim
        made.ends_by = 10.0
        assert not made.may_reclaim

    def test_runs_what_is_here_and_looks_no_more(self) -> None:
        made = scheduler()
        made.add([delivery()], 0.0)
        made.ends_by = 10.0
        running = take(made)
        assert running
        made.finish(running, [], 0.1)
        assert isinstance(made.next(60.0), float)

    def test_hands_back_between_steps_what_cannot_end_in_time(self) -> None:
        made, waiting, running_job = stepping(), long_job(bucket="b"), long_job()
        made.add([running_job], 0.0)
        running = made.next_step(0.0)
        assert running
        made.add([waiting], 0.0)
        made.ends_by = 5.0
        assert made.take_unfinishable(0.0) == [waiting]
        made.finish(running, [running_job], 1.0)
        assert made.take_unfinishable(1.0) == [running_job]
        assert not made.next_step(1.0)


class TestLongWork:
    def test_long_job_continues_and_leaves_room_for_short_ones(self) -> None:
        made, job = stepping(), long_job()
        made.add([job], 0.0)
        for now in (1.0, 2.0, 3.0):
            running = made.next_step(now)
            assert running and running.long and running.jobs == [job]
            assert look(made, now=now).items > 0
            made.finish(running, [job], now)
        running = made.next_step(4.0)
        assert running
        made.finish(running, [], 4.0)
        assert not made.next_step(5.0)

    @pytest.mark.parametrize("slots", [1, 2])
    def test_is_never_waited_for_by_short_work(self, slots: int) -> None:
        made = stepping(slots)
        made.add([long_job() for _ in range(20)], 0.0)
        assert all(made.next_step(0.0) for _ in range(slots)) and not made.next_step(0.0)
        made.add([delivery(bucket=str(number)) for number in range(slots)], 0.0)
        assert all(take(made) for _ in range(slots)), "as many batches as there are slots"
        assert not take(made)

    @pytest.mark.parametrize("slots", [1, 2])
    def test_starved_long_job_makes_one_batch_fewer_run(self, slots: int) -> None:
        made = stepping(slots, seconds=MAX_LAG_S)
        made.add([long_job()], 0.0)
        running = made.next_step(0.0)
        assert running
        made.add([delivery(bucket=str(number)) for number in range(3 * slots)], 0.0)
        for batch in [take(made) for _ in range(slots)]:
            assert batch
            made.finish(batch, [], 0.1)
        later = MAX_LAG_S / LONG_WORK_SHARE / slots + 1
        assert [take(made, later) is not None for _ in range(slots)] == [True] * (slots - 1) + [False]
        made.finish(running, [], later)
        assert take(made, later)

    @pytest.mark.parametrize("alone", [True, False])
    def test_that_is_owed_time_stops_nothing_that_steps_wait_for(self, alone: bool) -> None:
        """Else a worker of one slot stood still: no batch would run for the sake of steps, and no step before that batch."""
        made, later = stepping(1, seconds=MAX_LAG_S), 4 * MAX_LAG_S / LONG_WORK_SHARE
        made.add([long_job(alone=not alone, pulled_at=5.0)], 0.0)
        assert not take(made)
        short = delivery(queued_at=0.0, alone=alone)
        made.add([short], later)
        assert not made.next_step(later)
        running = take(made, later)
        assert running and running.jobs == [short]
        made.finish(running, [], later)
        assert made.next_step(later)

    def test_is_not_measured_while_short_jobs_slow_it_down(self) -> None:
        """The sizes that are run then would be known with that, the others without, and the budget would go back and forth between them."""
        made, job = stepping(seconds=0.1), long_job()
        made.add([job], 0.0)

        def predicted_after(seconds: float, *others: Delivery) -> float:
            running = made.next_step(0.0)
            assert running and running.jobs == [job]
            made.add(list(others), 0.0)
            concurrent = take(made)
            for _ in range(5):
                made.record_batch(running, 1, seconds)
            made.finish(running, [job], 0.1)
            if concurrent is not None:
                made.finish(concurrent, [], 0.1)
            following = made.next_step(0.0)
            assert following
            made.finish(following, [job], 0.1)
            return following.expected_end - following.started

        assert predicted_after(0.2) == pytest.approx(0.2)
        assert predicted_after(0.4, delivery()) == pytest.approx(0.2)
        assert predicted_after(0.3) == pytest.approx(0.3)

    def test_full_memory_lets_free_slot_wait_only_briefly(self) -> None:
        """A free slot that waited long would find a job late that waits for memory."""
        made = stepping(slots=2, seconds=600.0, residency=LargeSteps())
        assert look(made).block_s == IDLE_BLOCK_S
        made.add([long_job()], 1.0)
        running = made.next_step(1.0)
        assert running
        assert look(made).block_s == FULL_BLOCK_S
        made.finish(running, [], 2.0)
        assert look(made).block_s == IDLE_BLOCK_S


class TestPayload:
    def test_that_is_waited_for_counts_as_here(self) -> None:
        made, queue = scheduler(), delivery().queue
        made.payloads_pending[queue] = 5
        assert look(made).items == 3
        del made.payloads_pending[queue]
        assert look(made).items == 8

    def test_of_a_job_of_several_steps_counts_as_one(self) -> None:
        made, queue = stepping(), long_job().queue
        room = look(made).long[queue]
        for fetching in range(1, room + 1):
            made.payloads_pending[queue] = fetching
            assert look(made, now=1.0 + fetching).long[queue] == room - fetching

    def test_pending_lets_no_pull_wait_at_the_queue(self) -> None:
        """Such a pull would wait for the queues that may bring jobs at that moment, without those that may again as soon as it arrives."""
        made = stepping()
        for now, queue in ((10.0, delivery().queue), (20.0, long_job().queue)):
            made.payloads_pending[queue] = 1
            assert not look(made, now=now).block_s
            del made.payloads_pending[queue]
            assert look(made, now=now).block_s


def test_warm_up_step_counts_as_slowest_batch() -> None:
    """A worker is stuck after ten times that; networks whose step takes a minute would never come to its end."""
    made = stepping()
    made.seed_step_times(StepTimes(8), long=True, step_seconds=83.0)
    assert made.slowest_batch_s == 83.0
    made.seed_step_times(step_times(2.0), long=True)
    assert made.slowest_batch_s == 83.0
