"""Slots, at which the threads of a worker meet."""

from __future__ import annotations

import threading

import pytest

from server.queue.worker.delivery import Delivery
from server.scheduler.scheduler import IDLE_BLOCK_S, PullOrder, RunningBatch, Scheduler
from server.scheduler.slots import Slots, SlotWork
from tests.scheduler.test_scheduler import Steps, step_times
from tests.support.queue import delivery

PATIENCE = 10.0


def slots(count: int = 1, seconds: float = 5.0) -> Slots:
    """Batches of up to 8 that are expected to take `seconds`."""
    steps = step_times(seconds)
    made = Slots(Scheduler(count, lambda _bucket: steps))
    made.seed_step_times(steps)
    return made


def stepping_slots(count: int = 1, seconds: float = 0.001) -> Slots:
    steps, resident, queue = step_times(seconds), Steps(), delivery(bundle="long@1").queue
    return Slots(Scheduler(count, lambda _bucket: steps, lambda: {queue: resident}))


def take(made: Slots) -> RunningBatch:
    """Return the next batch; pulls before it find nothing."""
    while True:
        task = made.next()
        if isinstance(task, RunningBatch):
            return task
        assert task is not None
        made.finish_pull([])


def look(made: Slots, *found: Delivery) -> PullOrder:
    """Pull, find these jobs, and return the order."""
    task = made.next()
    assert isinstance(task, PullOrder)
    made.finish_pull(list(found))
    return task


def test_work_that_is_not_a_batch_runs_in_the_thread_of_a_slot() -> None:
    made, threads = slots(), list[int]()
    waiting = threading.Thread(target=lambda: made.run_in_slot(lambda: threads.append(threading.get_ident())))
    waiting.start()
    while not isinstance(work := made.next(), SlotWork):
        made.finish_pull([])
    work.run()
    waiting.join(PATIENCE)
    assert threads == [threading.get_ident()] and not waiting.is_alive()


def test_an_error_of_such_work_is_raised_where_it_is_waited_for() -> None:
    def fail() -> None:
        raise ValueError("no memory")

    work = SlotWork(fail)
    work.run()
    with pytest.raises(ValueError, match="no memory"):
        work.result()


def test_slot_that_waits_for_an_exclusive_job_is_woken() -> None:
    made, taken = slots(count=2), threading.Event()
    made.add([delivery(alone=True), delivery()])
    exclusive = take(made)
    threading.Thread(target=lambda: (take(made), taken.set()), daemon=True).start()
    assert not taken.wait(0.1)
    made.finish(exclusive)
    assert taken.wait(PATIENCE)


def test_draining_runs_what_is_here_and_pulls_no_more() -> None:
    made = slots()
    made.add([delivery()])
    made.drain()
    running = made.next()
    assert isinstance(running, RunningBatch)
    made.end_intake()
    made.finish(running)
    assert made.next() is None


def test_drain_hands_back_unfinishable_work_between_steps() -> None:
    made, waiting, running_job = stepping_slots(), delivery(bundle="long@1", bucket="b"), delivery(bundle="long@1")
    made.add([running_job])
    running = made.next_step()
    assert running is not None
    made.add([waiting])
    assert made.drain(5.0) == [waiting]
    assert made.finish(running, [running_job]).unfinishable == [running_job]
    made.end_intake()
    assert made.next_step() is None


def test_poll_with_long_jobs_wakes_step_thread_if_slots_are_busy() -> None:
    made, taken = stepping_slots(1, seconds=600.0), threading.Event()
    waiting = threading.Thread(target=lambda: (made.next_step(), taken.set()), daemon=True)
    waiting.start()
    assert isinstance(made.next(), PullOrder)
    made.add([delivery()])
    assert isinstance(made.next(), RunningBatch)
    made.finish_pull([delivery(bundle="long@1")])
    assert taken.wait(PATIENCE)


def test_a_stop_returns_what_waits_and_what_runs() -> None:
    made = slots()
    jobs = [delivery(bucket="a"), delivery(bucket="b")]
    made.add(jobs)
    take(made)
    assert {job.entry_id for job in made.stop()} == {job.entry_id for job in jobs}
    assert made.next() is None


def test_thread_that_finds_job_runs_it_while_another_polls() -> None:
    made, job = slots(count=2), delivery()
    looks: list[PullOrder] = []
    found = made.next()
    assert isinstance(found, PullOrder)
    other = threading.Thread(target=lambda: looks.append(look(made)), daemon=True)
    other.start()
    other.join(0.1)
    assert other.is_alive(), "one look at a time"
    made.finish_pull([job])
    running = made.next()
    assert isinstance(running, RunningBatch) and running.jobs == [job]
    other.join(PATIENCE)
    assert [pull.block_s for pull in looks] == [IDLE_BLOCK_S]


def test_all_threads_end_when_last_drained_batch_starts() -> None:
    made = slots(seconds=0.0)
    made.add([delivery(bucket="a"), delivery(bucket="b")])
    running = take(made)
    left: list[object] = []
    others = [threading.Thread(target=lambda: left.append(made.next()), daemon=True) for _ in range(2)]
    made.drain()
    for other in others:
        other.start()
    made.end_intake()
    made.finish(running)
    for other in others:
        other.join(PATIENCE)
    assert sorted(map(type, left), key=str) == [type(None), RunningBatch]


def test_a_look_that_is_under_way_can_be_awaited() -> None:
    made = slots(seconds=0.0)
    made.wait_for_pull(PATIENCE)
    assert isinstance(made.next(), PullOrder) and made.is_pulling
    made.drain()
    ender = threading.Timer(0.1, made.finish_pull, args=([delivery()],))
    ender.start()
    made.wait_for_pull(PATIENCE)
    assert not made.is_pulling and made.stop()
