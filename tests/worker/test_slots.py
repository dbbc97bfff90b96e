"""Where the threads of a worker meet."""

from __future__ import annotations

import threading
import time

import pytest

from server.queue.delivery import Delivery
from server.worker.batcher import Batcher
from server.worker.batches import CROWDED_BLOCK, LONG_BLOCK, Pull, Running
from server.worker.budget import StepTimes
from server.worker.long_work import LAG, QUARTER, LongWork
from server.worker.slots import Slots
from tests.worker.deliveries import delivery

PATIENCE = 10.0


def slots(count: int = 1, seconds: float = 5.0) -> Slots:
    """Batches of up to 8 that are expected to take `seconds`."""
    steps = StepTimes(8)
    for size in (1, 2, 4, 8):
        steps.record(size, seconds)
    made = Slots(count, Batcher(lambda _bucket: steps))
    made.expect(steps)
    return made


def take(made: Slots, *, wait: bool = True) -> Running | None:
    """The next batch."""
    task = made.next(wait=wait, looks=False)
    assert not isinstance(task, Pull)
    return task


def step(made: Slots, *, wait: bool = True) -> Running | None:
    """The next step of long jobs."""
    return made.next_step(wait=wait)


def look(made: Slots, *found: Delivery) -> Pull:
    """The next look at the queue, which finds these."""
    task = made.next()
    assert isinstance(task, Pull)
    made.looked(list(found))
    return task


def test_an_idle_worker_waits_at_the_queue_for_one_batch() -> None:
    pull = look(slots())
    assert (pull.items, pull.block) == (8, LONG_BLOCK)


def test_a_slot_that_is_lent_runs_nothing_and_serves_again_later() -> None:
    made = slots(2)
    made.lend()
    made.add([delivery(), delivery(bundle="other@1")])
    first = take(made)
    assert first is not None and take(made, wait=False) is None
    made.take_back()
    assert take(made) is not None


def test_a_slot_is_lent_once_its_batch_has_ended() -> None:
    made = slots()
    made.add([delivery()])
    running = take(made)
    assert running is not None
    lending = threading.Thread(target=made.lend)
    lending.start()
    made.add([delivery()])
    made.finish(running)
    lending.join(PATIENCE)
    assert not lending.is_alive() and take(made, wait=False) is None
    made.take_back()
    assert take(made) is not None


def test_a_busy_worker_looks_only_shortly_before_the_end_of_its_batch_and_never_waits_at_the_queue() -> None:
    made = slots(seconds=0.2)
    made.add([delivery()])
    running = take(made)
    assert running is not None
    pull = look(made)
    assert (pull.items, pull.block) == (8, 0)
    assert running.expected_end - 0.1 < time.monotonic() < running.expected_end + PATIENCE


def test_a_reclaimed_job_has_the_whole_worker_to_itself() -> None:
    made = slots(count=2)
    made.add([delivery(alone=True), delivery()])
    lone = take(made)
    assert lone is not None
    assert [job.alone for job in lone.jobs] == [True]
    assert not made.may_reclaim
    taken = threading.Event()
    other = threading.Thread(target=lambda: (take(made), taken.set()), daemon=True)
    other.start()
    assert not taken.wait(0.1)
    made.finish(lone)
    assert taken.wait(PATIENCE)
    assert made.may_reclaim


def test_what_is_claimed_runs_next_and_alone() -> None:
    """Else the death that another batch causes would be charged to what only waited here."""
    made, others, orphan = slots(count=2), [delivery(), delivery(bucket="b")], delivery(alone=True)
    made.add(others[:1])
    running = take(made)
    assert running is not None
    made.add([orphan, *others[1:]])
    assert take(made, wait=False) is None, "a batch runs, and what is claimed comes first"
    made.finish(running)
    lone = take(made)
    assert lone is not None and lone.jobs == [orphan]
    assert take(made, wait=False) is None


def test_a_worker_that_drains_claims_nothing() -> None:
    made = slots()
    assert made.may_reclaim
    made.drain()
    assert not made.may_reclaim


def test_draining_runs_what_is_here_and_pulls_no_more() -> None:
    made = slots()
    made.add([delivery()])
    made.drain()
    running = take(made)
    assert running is not None
    assert made.next(wait=False) is None, "no look"
    made.intake_ended()
    made.finish(running)
    assert made.next() is None


class Steps:
    """What slots ask of a stepwise bundle: nothing has started, and states are small."""

    nbytes = residents = state_bytes = 0
    start_seconds = 0.0

    def weight(self, job: Delivery) -> float:
        return 1.0

    def remaining(self, job: Delivery) -> int | None:
        return None


def stepping_slots(count: int = 1, seconds: float = 0.001, residency: Steps | None = None) -> Slots:
    steps, kept = StepTimes(8), residency or Steps()
    for size in (1, 2, 4, 8):
        steps.record(size, seconds)
    queue = delivery(bundle="long@1").queue
    return Slots(count, Batcher(lambda _bucket: steps), LongWork(lambda _bucket: steps, lambda: {queue: kept}), state_bytes=1_000)


def test_what_goes_on_takes_its_next_step_and_leaves_room_for_short_jobs() -> None:
    made, job = stepping_slots(), delivery(bundle="long@1")
    made.add([job])
    for _ in range(3):
        running = step(made)
        assert running is not None and running.long and running.jobs == [job]
        pull = look(made)
        assert pull.items > 0
        made.finish(running, [job])
        assert not made.idle
    running = step(made)
    assert running is not None
    made.finish(running, [])
    assert made.idle


@pytest.mark.parametrize("count", [1, 2])
def test_short_work_never_waits_for_a_step(count: int) -> None:
    made = stepping_slots(count)
    made.add([delivery(bundle="long@1") for _ in range(20)])
    steps = [step(made) for _ in range(count)]
    assert all(steps) and step(made, wait=False) is None
    made.add([delivery(bucket=str(number)) for number in range(count)])
    assert all(take(made, wait=False) for _ in range(count)), "as many batches as there are slots"
    assert take(made, wait=False) is None


@pytest.mark.parametrize("count", [1, 2])
def test_one_batch_fewer_runs_where_long_work_has_had_less_than_its_share(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stepping_slots(count, seconds=LAG)
    made.add([delivery(bundle="long@1")])
    running = step(made)
    assert running is not None
    made.add([delivery(bucket=str(number)) for number in range(3 * count)])
    for batch in [take(made, wait=False) for _ in range(count)]:
        assert batch is not None
        made.finish(batch)
    later = time.monotonic() + LAG / QUARTER / count + 1
    monkeypatch.setattr("server.worker.slots.time.monotonic", lambda: later)
    batches = [take(made, wait=False) for _ in range(count)]
    assert [batch is not None for batch in batches] == [True] * (count - 1) + [False]
    made.finish(running)
    assert take(made, wait=False)


@pytest.mark.parametrize("alone", [True, False])
def test_what_long_work_is_owed_stops_nothing_that_steps_wait_for(alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a worker of one slot stood still: no batch would run for the sake of steps, and no step before that batch."""
    made = stepping_slots(1, seconds=LAG)
    made.add([delivery(bundle="long@1", alone=not alone, pulled_at=5.0)])
    assert take(made, wait=False) is None
    later = time.monotonic() + 4 * LAG / QUARTER
    monkeypatch.setattr("server.worker.slots.time.monotonic", lambda: later)
    short = delivery(queued_at=0.0, alone=alone)
    made.add([short])
    assert step(made, wait=False) is None
    running = take(made, wait=False)
    assert running is not None and running.jobs == [short]
    made.finish(running)
    assert step(made, wait=False)


def test_a_look_that_finds_long_jobs_while_all_slots_are_busy_wakes_who_takes_steps() -> None:
    made, taken = stepping_slots(1, seconds=600.0), threading.Event()
    waiting = threading.Thread(target=lambda: (step(made), taken.set()), daemon=True)
    waiting.start()
    assert isinstance(made.next(), Pull)
    made.add([delivery()])
    assert take(made) is not None
    made.looked([delivery(bundle="long@1")])
    assert taken.wait(PATIENCE)


def test_a_step_is_not_measured_while_short_jobs_slow_it_down() -> None:
    """The sizes that are run then would be known with that, the others without, and the budget would go back and forth between them."""
    made, job = stepping_slots(seconds=0.1), delivery(bundle="long@1")
    made.add([job])

    def predicted_after(seconds: float, *others: Delivery) -> float:
        running = step(made)
        assert running is not None and running.jobs == [job]
        made.add(list(others))
        beside = take(made, wait=False)
        for _ in range(5):
            made.measured(running, 1, seconds)
        made.finish(running, [job])
        if beside is not None:
            made.finish(beside)
        following = step(made)
        assert following is not None
        made.finish(following, [job])
        return following.expected_end - following.started

    assert predicted_after(0.2) == pytest.approx(0.2)
    assert predicted_after(0.4, delivery()) == pytest.approx(0.2)
    assert predicted_after(0.3) == pytest.approx(0.3)


def test_a_suspect_of_several_steps_lets_the_worker_go_on_between_them() -> None:
    made, lone, short = stepping_slots(count=2), delivery(bundle="long@1", alone=True), delivery(queued_at=5.0)
    made.add([lone])
    running = step(made)
    assert running is not None and running.jobs == [lone]
    made.add([short])
    assert take(made, wait=False) is None, "nothing starts while its step runs"
    made.finish(running, [lone])
    between = take(made)
    assert between is not None and between.jobs == [short]
    assert step(made, wait=False) is None, "its step waits until nothing runs"
    made.add([delivery(queued_at=time.monotonic() + 60)])
    assert take(made, wait=False) is None, "and what came later waits for it"
    made.finish(between)
    again = step(made)
    assert again is not None and again.jobs == [lone]


def test_the_worker_looks_for_short_jobs_while_a_suspect_takes_its_step() -> None:
    made, lone = stepping_slots(), delivery(bundle="long@1", alone=True)
    made.add([lone])
    for _ in range(3):
        running = step(made)
        assert running is not None and running.jobs == [lone]
        pulls: list[Pull] = []
        other = threading.Thread(target=lambda here=pulls: here.append(look(made)), daemon=True)  # type: ignore[misc]
        other.start()
        other.join(PATIENCE)
        assert pulls and pulls[0].items > 0
        made.finish(running, [lone])


def test_draining_hands_back_between_steps_what_cannot_end_in_time() -> None:
    made, waiting, running_job = stepping_slots(), delivery(bundle="long@1", bucket="b"), delivery(bundle="long@1")
    made.add([running_job])
    running = step(made)
    assert running is not None
    made.add([waiting])
    assert made.drain(5.0) == [waiting]
    assert made.finish(running, [running_job]).leaving == [running_job]
    made.intake_ended()
    assert step(made) is None


def test_what_waits_for_its_payload_counts_as_here() -> None:
    made = slots()
    made.fetching(delivery().queue, 5)
    pull = look(made)
    assert pull.items == 3
    made.fetching(delivery().queue, -5)
    pull = look(made)
    assert pull.items == 8


def test_what_waits_for_its_payload_counts_as_one_of_several_steps() -> None:
    made, queue = stepping_slots(), delivery(bundle="long@1").queue
    pull = look(made)
    room = pull.long[queue]
    for fetching in range(1, room + 1):
        made.fetching(queue, 1)
        pull = look(made)
        assert pull.long[queue] == room - fetching


def test_nobody_waits_at_the_queue_while_a_payload_comes() -> None:
    """It would be a wait for the queues that have place at that moment, though the others have place again as soon as it is here."""
    made = stepping_slots()
    for queue in (delivery().queue, delivery(bundle="long@1").queue):
        made.fetching(queue, 1)
        pull = look(made)
        assert not pull.block
        made.fetching(queue, -1)
        pull = look(made)
        assert pull.block


class LargeSteps(Steps):
    """Of states that leave no place for another one."""

    state_bytes = 1_000


def test_a_free_slot_waits_only_briefly_at_the_queue_while_no_more_states_fit() -> None:
    """What waits there for a place would be found late."""
    made = stepping_slots(count=2, seconds=600.0, residency=LargeSteps())
    assert look(made).block == LONG_BLOCK
    made.add([delivery(bundle="long@1")])
    running = step(made)
    assert running is not None
    assert look(made).block == CROWDED_BLOCK
    made.finish(running)
    assert look(made).block == LONG_BLOCK


def test_a_stop_returns_what_waits_and_what_runs() -> None:
    made = slots()
    jobs = [delivery(bucket="a"), delivery(bucket="b")]
    made.add(jobs)
    take(made)
    assert {job.entry_id for job in made.stop()} == {job.entry_id for job in jobs}
    assert take(made) is None


def test_the_thread_that_finds_a_job_runs_it_and_another_one_looks_meanwhile() -> None:
    made, job = slots(count=2), delivery()
    looks: list[Pull] = []
    found = made.next()
    assert isinstance(found, Pull)
    other = threading.Thread(target=lambda: looks.append(look(made)), daemon=True)
    other.start()
    other.join(0.1)
    assert other.is_alive(), "one look at a time"
    made.looked([job])
    running = made.next()
    assert isinstance(running, Running) and running.jobs == [job]
    other.join(PATIENCE)
    assert [pull.block for pull in looks] == [LONG_BLOCK]


def test_no_more_batches_run_than_there_are_slots() -> None:
    made = slots(seconds=0.0)
    made.add([delivery(bucket="a"), delivery(bucket="b")])
    running = take(made)
    assert running is not None
    assert take(made, wait=False) is None
    made.finish(running)
    assert take(made, wait=False) is not None


def test_every_thread_leaves_when_the_last_batch_of_a_drained_worker_starts() -> None:
    made = slots(seconds=0.0)
    made.add([delivery(bucket="a"), delivery(bucket="b")])
    running = take(made)
    assert running is not None
    left: list[object] = []
    others = [threading.Thread(target=lambda: left.append(made.next()), daemon=True) for _ in range(2)]
    made.drain()
    for other in others:
        other.start()
    made.intake_ended()
    made.finish(running)
    for other in others:
        other.join(PATIENCE)
    assert sorted(map(type, left), key=str) == [type(None), Running]


def test_a_look_that_is_under_way_can_be_awaited() -> None:
    made = slots(seconds=0.0)
    made.await_look(PATIENCE)
    assert isinstance(made.next(), Pull) and made.looking
    made.drain()
    ender = threading.Timer(0.1, made.looked, args=([delivery()],))
    ender.start()
    made.await_look(PATIENCE)
    assert not made.looking and made.stop()
