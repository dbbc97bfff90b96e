"""Which jobs run next, and when a batch waits."""

from __future__ import annotations

from math import inf

import pytest

from server.queue.messages import PRIORITY_DELAY_S
from server.queue.worker.delivery import Delivery
from server.scheduler.batcher import MAX_BACKLOG_BUDGETS, Batcher, StepTimes
from tests.support.queue import delivery

CHEAP_TOGETHER = {1: 0.100, 2: 0.101, 4: 0.103, 8: 0.107}
"""One batch of eight instead of eight of one saves much: waiting can pay."""
NO_CHEAPER_TOGETHER = {1: 0.100, 2: 0.199, 4: 0.380, 8: 0.720}


def batcher(seconds: dict[int, float] = NO_CHEAPER_TOGETHER, largest: int = 8) -> Batcher:
    steps = StepTimes(largest)
    for size, time in seconds.items():
        steps.record(size, time)
    return Batcher(lambda _bucket: steps)


def batcher_with(jobs: list[Delivery], seconds: dict[int, float] = NO_CHEAPER_TOGETHER) -> Batcher:
    made = batcher(seconds)
    for job in jobs:
        made.add(job)
    return made


def take(made: Batcher, now: float = 0.0, running: int = 0, idle_slots: int = 1) -> list[Delivery]:
    batch = made.next(now, running=running, idle_slots=idle_slots)
    assert isinstance(batch, list)
    return batch


def test_jobs_run_at_once_when_no_others_are_expected() -> None:
    job = delivery()
    assert take(batcher_with([job])) == [job]


def test_batch_takes_budget_and_leaves_the_rest() -> None:
    jobs = [delivery() for _ in range(11)]
    made = batcher_with(jobs)
    assert take(made) == jobs[:8]
    assert take(made) == jobs[8:]
    assert made.next(0.0, running=0, idle_slots=1) == inf


def test_a_batch_holds_one_bucket_of_one_bundle() -> None:
    jobs = [delivery(), delivery(bucket="b"), delivery(bundle="other@1"), delivery()]
    made = batcher_with(jobs)
    assert [take(made) for _ in range(3)] == [[jobs[0], jobs[3]], [jobs[1]], [jobs[2]]]


def test_higher_priority_goes_first() -> None:
    low, normal, high = delivery(bucket="l", priority="low"), delivery(bucket="n"), delivery(bucket="h", priority="high")
    made = batcher_with([low, normal, high])
    assert [take(made) for _ in range(3)] == [[high], [normal], [low]]


def test_within_a_bucket_the_urgent_take_the_places() -> None:
    normal, high = [delivery() for _ in range(8)], delivery(priority="high")
    assert take(batcher_with([*normal, high])) == [high, *normal[:7]]


def test_low_job_is_served_under_constant_high_load() -> None:
    low = delivery(bucket="low", priority="low", queued_at=0.0)
    made = batcher_with([low])
    for second in range(int(PRIORITY_DELAY_S["low"]) + 2):
        made.add(delivery(bucket="high", priority="high", queued_at=float(second)))
        if low in take(made, now=float(second)):
            return
    pytest.fail("the low job starved")


def test_a_reclaimed_job_runs_by_itself_and_before_the_others() -> None:
    others, orphan = [delivery(), delivery()], delivery(alone=True)
    made = batcher_with([*others, orphan])
    assert take(made) == [orphan]
    assert take(made) == others


def test_reclaimed_job_waits_until_worker_is_idle() -> None:
    made = batcher_with([delivery(alone=True)])
    assert made.next(0.0, running=3, idle_slots=1) == inf
    assert len(take(made, running=0)) == 1


def test_idle_slots_share_what_is_there() -> None:
    made = batcher_with([delivery() for _ in range(6)])
    assert len(take(made, idle_slots=2)) == 3
    assert len(take(made, idle_slots=1, running=3)) == 3


class TestWaiting:
    """Eight clients in a closed loop: after a batch of eight they come back a millisecond apart."""

    def returning(self, seconds: dict[int, float], count: int) -> Batcher:
        made = batcher(seconds)
        for tick in range(16):
            made.arrivals.record(1, tick * 0.001)
        made.arrivals.record_in_flight(8)
        for _ in range(count):
            made.add(delivery())
        return made

    def test_waiting_pays_if_one_batch_saves_more_than_it_costs(self) -> None:
        made = self.returning(CHEAP_TOGETHER, count=3)
        wait = made.next(1.0, running=0, idle_slots=1)
        assert isinstance(wait, float)
        assert 0 < wait < inf

    def test_ends_when_all_have_come(self) -> None:
        made = self.returning(CHEAP_TOGETHER, count=3)
        assert isinstance(made.next(1.0, running=0, idle_slots=1), float)
        for _ in range(5):
            made.add(delivery())
        assert len(take(made, now=1.005)) == 8

    def test_ends_when_it_has_cost_what_it_could_save(self) -> None:
        made = self.returning(CHEAP_TOGETHER, count=3)
        wait = made.next(1.0, running=0, idle_slots=1)
        assert isinstance(wait, float)
        assert len(take(made, now=1.0 + wait)) == 3

    def test_does_not_pay_when_items_cost_as_much_together(self) -> None:
        assert len(take(self.returning({size: size * 0.1 for size in (1, 2, 4, 8)}, count=1))) == 1

    def test_is_not_for_those_who_run_already(self) -> None:
        made = self.returning(CHEAP_TOGETHER, count=3)
        assert len(take(made, running=5)) == 3

    def test_leaves_no_slot_idle(self) -> None:
        made = self.returning(CHEAP_TOGETHER, count=3)
        assert len(take(made, idle_slots=2)) == 2

    def test_does_not_hold_up_another_bucket(self) -> None:
        made = self.returning(CHEAP_TOGETHER, count=3)
        made.add(delivery(bucket="b"))
        assert len(take(made)) == 3


class TestCapacity:
    def test_is_one_batch_for_each_idle_slot(self) -> None:
        assert batcher().capacity(8, idle_slots=2) == 16

    def test_is_one_batch_ahead_while_all_slots_are_busy(self) -> None:
        assert batcher_with([delivery() for _ in range(3)]).capacity(8, idle_slots=0) == 5

    def test_is_none_when_the_next_batch_is_full(self) -> None:
        assert batcher_with([delivery() for _ in range(8)]).capacity(8, idle_slots=0) == 0

    def test_is_bounded_when_no_bucket_fills(self) -> None:
        made = batcher_with([delivery(bucket=str(number)) for number in range(MAX_BACKLOG_BUDGETS * 8)])
        assert made.capacity(8, idle_slots=0) == 0


def test_what_waits_can_be_taken_back() -> None:
    jobs = [delivery(), delivery(bucket="b")]
    made = batcher_with(jobs)
    assert made.clear() == jobs
    assert len(made) == 0
