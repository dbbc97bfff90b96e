"""Where the threads of a worker meet."""

from __future__ import annotations

import threading
import time

from server.queue.delivery import Delivery
from server.worker.batcher import Batcher
from server.worker.batches import Pull
from server.worker.budget import StepTimes
from server.worker.long_work import LongWork
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


def test_an_idle_worker_waits_at_the_queue_for_one_batch() -> None:
    pull = slots().next_pull()
    assert pull is not None
    assert (pull.items, pull.block) == (8, True)


def test_a_busy_worker_looks_only_shortly_before_the_end_of_its_batch_and_never_waits_at_the_queue() -> None:
    made = slots(seconds=0.2)
    made.add([delivery()])
    running = made.take()
    assert running is not None
    pull = made.next_pull()
    assert pull is not None
    assert (pull.items, pull.block) == (8, False)
    assert running.expected_end - 0.1 < time.monotonic() < running.expected_end + PATIENCE


def test_a_reclaimed_job_has_the_whole_worker_to_itself() -> None:
    made = slots(count=2)
    made.add([delivery(alone=True), delivery()])
    lone = made.take()
    assert lone is not None
    assert [job.alone for job in lone.jobs] == [True]
    assert not made.may_reclaim
    taken = threading.Event()
    other = threading.Thread(target=lambda: (made.take(), taken.set()), daemon=True)
    other.start()
    assert not taken.wait(0.1)
    made.finish(lone)
    assert taken.wait(PATIENCE)
    assert made.may_reclaim


def test_nothing_starts_while_it_is_quiet_and_what_is_claimed_then_runs_next_and_alone() -> None:
    """Else the death that another batch causes would be charged to what only waited here."""
    made = slots(count=2)
    others = [delivery(), delivery(bucket="b")]
    made.add(others[:1])
    running = made.take()
    assert running is not None
    claimed, orphan = threading.Event(), delivery(alone=True)

    def take_over() -> None:
        with made.quiet() as quiet:
            assert quiet
            claimed.set()
            made.add([orphan])

    receiver = threading.Thread(target=take_over, daemon=True)
    receiver.start()
    made.add(others[1:])
    batches: list[list[Delivery]] = []
    other = threading.Thread(target=lambda: batches.append(made.take().jobs), daemon=True)  # type: ignore[union-attr]
    other.start()
    assert not claimed.wait(0.1), "a batch runs"
    assert not batches, "a claim is about to come"
    made.finish(running)
    assert claimed.wait(PATIENCE)
    other.join(PATIENCE)
    assert batches == [[orphan]]


def test_a_worker_that_drains_claims_nothing() -> None:
    made = slots()
    made.add([delivery()])
    made.take()
    made.drain()
    with made.quiet() as quiet:
        assert not quiet


def test_draining_runs_what_is_here_and_pulls_no_more() -> None:
    made = slots()
    made.add([delivery()])
    made.drain()
    assert made.next_pull() is None
    made.intake_ended()
    running = made.take()
    assert running is not None
    made.finish(running)
    assert made.take() is None


class Steps:
    """What slots ask of a stepwise bundle: nothing has started, and states are small."""

    nbytes = residents = state_bytes = 0
    start_seconds = 0.0

    def weight(self, job: Delivery) -> float:
        return 1.0

    def remaining(self, job: Delivery) -> int | None:
        return None


def stepping_slots(count: int = 1) -> Slots:
    steps = StepTimes(8)
    for size in (1, 2, 4, 8):
        steps.record(size, 0.001)
    queue = delivery(bundle="long@1").queue
    return Slots(count, Batcher(lambda _bucket: steps, LongWork(lambda _bucket: steps, lambda: {queue: Steps()})))


def test_what_goes_on_takes_its_next_step_and_leaves_room_for_short_jobs() -> None:
    made, job = stepping_slots(), delivery(bundle="long@1")
    made.add([job])
    for _ in range(3):
        running = made.take()
        assert running is not None and running.long and running.jobs == [job]
        pull = made.next_pull()
        assert pull is not None and pull.items > 0
        assert not made.finish(running, [job]).idle
    running = made.take()
    assert running is not None
    assert made.finish(running, []).idle
    assert made.idle


def test_a_suspect_of_several_steps_lets_the_worker_go_on_between_them() -> None:
    made, lone, short = stepping_slots(count=2), delivery(bundle="long@1", alone=True), delivery(queued_at=5.0)
    made.add([lone])
    running = made.take()
    assert running is not None and running.jobs == [lone]
    made.add([short])
    assert made.take(wait=False) is None, "nothing starts while its step runs"
    made.finish(running, [lone])
    between = made.take()
    assert between is not None and between.jobs == [short]
    assert made.take(wait=False) is None, "its step waits until nothing runs"
    made.finish(between)
    again = made.take()
    assert again is not None and again.jobs == [lone]


def test_the_worker_looks_for_short_jobs_while_a_suspect_takes_its_step() -> None:
    made, lone = stepping_slots(), delivery(bundle="long@1", alone=True)
    made.add([lone])
    for _ in range(3):
        running = made.take()
        assert running is not None and running.jobs == [lone]
        pulls: list[Pull | None] = []
        receiver = threading.Thread(target=lambda here=pulls: here.append(made.next_pull()), daemon=True)  # type: ignore[misc]
        receiver.start()
        receiver.join(PATIENCE)
        assert pulls and pulls[0] is not None and pulls[0].items > 0
        made.finish(running, [lone])


def test_draining_hands_back_between_steps_what_cannot_end_in_time() -> None:
    made, waiting, running_job = stepping_slots(), delivery(bundle="long@1", bucket="b"), delivery(bundle="long@1")
    made.add([running_job])
    running = made.take()
    assert running is not None
    made.add([waiting])
    assert made.drain(5.0) == [waiting]
    assert made.finish(running, [running_job]).leaving == [running_job]
    made.intake_ended()
    assert made.take() is None


def test_what_waits_for_its_payload_counts_as_here() -> None:
    made = slots()
    made.fetching(delivery().queue, 5)
    pull = made.next_pull()
    assert pull is not None and pull.items == 3
    made.fetching(delivery().queue, -5)
    pull = made.next_pull()
    assert pull is not None and pull.items == 8


def test_what_waits_for_its_payload_counts_as_one_of_several_steps() -> None:
    made, queue = stepping_slots(), delivery(bundle="long@1").queue
    pull = made.next_pull()
    assert pull is not None
    room = pull.long[queue]
    for fetching in range(1, room + 1):
        made.fetching(queue, 1)
        pull = made.next_pull()
        assert pull is not None and pull.long[queue] == room - fetching


def test_nobody_waits_at_the_queue_while_a_payload_comes() -> None:
    """It would be a wait for the queues that have place at that moment, though the others have place again as soon as it is here."""
    made = stepping_slots()
    for queue in (delivery().queue, delivery(bundle="long@1").queue):
        made.fetching(queue, 1)
        pull = made.next_pull()
        assert pull is not None and not pull.block
        made.fetching(queue, -1)
        pull = made.next_pull()
        assert pull is not None and pull.block


def test_a_stop_returns_what_waits_and_what_runs() -> None:
    made = slots()
    jobs = [delivery(bucket="a"), delivery(bucket="b")]
    made.add(jobs)
    made.take()
    assert {job.entry_id for job in made.stop()} == {job.entry_id for job in jobs}
    assert made.take() is None
