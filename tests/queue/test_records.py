"""Clients' jobs that outlive their gateway: records that gateways and workers share in Redis."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
import redis

from server.queue import keys
from server.queue.gateway.connection import GatewayRedisLink
from server.queue.gateway.dispatcher import Dispatcher
from server.queue.gateway.submitter import INLINE_BYTES
from server.queue.messages import VERSION, Array, Progress, QueuedJob, Reply, WorkerTiming
from server.queue.record import Record
from server.queue.worker.delivery import Delivery
from tests.support.queue import (
    BUNDLE,
    DIGEST,
    DRAFT,
    QUEUE,
    QUICK_GATEWAY,
    QUICK_WORKER,
    STREAM,
    Consumer,
    WorkerQueue,
    a_job,
    age_low_job,
    announce,
    ask,
    echo,
    gateway,
    nothing_is_left,
    worker_queue,
)
from tests.support.waiting import eventually_async


async def admit(
    us: Dispatcher, value: int = 0, seconds: float = 60.0, key: str = "", v: int = VERSION, needs: str = "", **arrays: Any
) -> str:
    """Admit a record of one job whose answer is `value`. Returns the id of the record."""
    deadline = int(us.link.now_ms() + seconds * 1000)

    def jobs(record: str) -> list[QueuedJob]:
        values = {"x": np.array(value), **arrays}
        return [
            QueuedJob(
                v=v,
                id=f"{record}-0",
                bundle=BUNDLE,
                digest=DIGEST,
                bucket="",
                arrays={name: Array.from_numpy(np.asarray(array)) for name, array in values.items()},
                options={},
                deadline_ms=deadline,
                gateway="",
                record=record,
                progress=True,
                previews=True,
                needs=needs,
            )
        ]

    return (await us.records.admit(msgspec.structs.replace(DRAFT, idem=key), b"\x80", jobs)).id


async def read(us: Dispatcher, record_id: str) -> Record:
    record = await us.records.read(record_id)
    assert record is not None
    return record


async def comes_to(us: Dispatcher, record_id: str, state: str) -> None:
    async def is_there() -> bool:
        return (await read(us, record_id)).state == state

    await eventually_async(is_there)


async def take(worker: WorkerQueue) -> Delivery:
    announce(worker)
    [delivery] = await asyncio.to_thread(worker.pull, [QUEUE], 16, 2000)
    return delivery


async def take_two(worker: WorkerQueue) -> list[Delivery]:
    return [await take_one(worker), await take_one(worker)]


async def take_one(worker: WorkerQueue) -> Delivery:
    announce(worker)
    [delivery] = await asyncio.to_thread(worker.pull, [QUEUE], 1, 2000)
    return delivery


def store_reply(db: redis.Redis, worker: WorkerQueue, delivery: Delivery) -> Reply:
    """Store large arrays as a worker does, and return the reply that names their key."""
    key = f"out:{delivery.job.id}:{uuid.uuid4().hex}"
    db.set(key, b"\x80", ex=60)
    return Reply(id=delivery.job.id, worker=worker.id, stored=key)


async def test_a_job_is_run_whichever_gateway_is_dead(url: str, us: Dispatcher, worker: WorkerQueue, db: redis.Redis) -> None:
    async with gateway(url) as leaving:
        record = await admit(leaving, 7)
    delivery = await take(worker)
    assert worker.start([delivery], 0) == [delivery]
    assert worker.acks.finish([(delivery, echo(worker, delivery))]) == [True]
    [reply] = await us.records.replies(await read(us, record)) or []
    assert int(reply.arrays["x"].to_numpy()) == 7
    assert nothing_is_left(db)


async def test_a_job_that_was_handed_back_goes_on(us: Dispatcher, worker: WorkerQueue) -> None:
    record = await admit(us, 7)
    worker.intake.return_to_queue([await take(worker)])
    delivery = await take(worker)
    worker.acks.finish([(delivery, echo(worker, delivery))])
    assert (await read(us, record)).state == "done"


async def test_a_job_that_kills_its_workers_fails(url: str, us: Dispatcher) -> None:
    record = await admit(us, poison=True)
    for _ in range(4):
        async with Consumer(url) as consumer:
            await eventually_async(lambda: consumer.process.poll() is not None)
        await asyncio.sleep(0.7)  # its key expires
    async with Consumer(url):
        await comes_to(us, record, "failed")
    failure = (await read(us, record)).failure
    assert failure is not None and failure.kind == "worker-crashed"


async def test_only_latest_preview_is_kept_and_none_with_answer(us: Dispatcher, worker: WorkerQueue) -> None:
    record = await admit(us)
    delivery = await take(worker)
    for done in range(3):
        preview = {"picture": Array.from_numpy(np.zeros(done + 1))}
        worker.acks.progress(
            [(delivery, Progress(id=delivery.job.id, worker=worker.id, done=done, total=9, unit="steps", preview=preview))]
        )
    [happened] = await us.records.events([(record, 0)])
    assert [event.name for event in happened.events] == ["queued", "started", "progress", "progress", "progress", "preview"]
    assert [event.number for event in happened.events] == [1, 2, 3, 5, 7, 8]
    worker.acks.finish([(delivery, echo(worker, delivery))])
    [happened] = await us.records.events([(record, 0)])
    assert [event.name for event in happened.events] == ["queued", "started", "progress", "progress", "progress", "progress", "done"]


async def test_start_of_work_is_reported_and_each_restart(url: str, us: Dispatcher, worker: WorkerQueue) -> None:
    record = await admit(us)
    first = await take(worker)
    started = Progress(id=first.job.id, worker=worker.id, done=0, total=0, unit="")
    assert worker.start([first], 0)
    worker.acks.progress([(first, started)])
    worker.acks.progress([(first, Progress(id=first.job.id, worker=worker.id, done=0, total=9, unit="steps"))])
    worker.withdraw()
    second = worker_queue(url, "second", QUICK_WORKER)
    claimed = await asyncio.to_thread(second.intake.reclaim, [QUEUE])
    assert claimed is not None
    second.acks.progress([(claimed, started)])
    assert second.acks.finish([(claimed, echo(second, claimed))]) == [True]
    second.close()
    [happened] = await us.records.events([(record, 0)])
    assert [event.name for event in happened.events] == ["queued", "started", "progress", "started", "progress", "done"]
    record_now = await read(us, record)
    assert record_now.started_ms is not None and abs(int(happened.events[1].data) - record_now.started_ms) < 2


async def test_changed_place_is_reported_while_read_and_rarely(us: Dispatcher, worker: WorkerQueue, db: redis.Redis) -> None:
    before, record = await admit(us), await admit(us)
    delivery = await take_one(worker)
    worker.acks.finish([(delivery, echo(worker, delivery))])
    assert (await read(us, before)).state == "done"

    async def places() -> list[int]:
        [happened] = await us.records.events([(record, 0)])
        return [json.loads(event.data)["place"] for event in happened.events if event.name == "queued"]

    assert await places() == [1], "its place has just been reported"
    db.hincrby(f"record:{record}", "placed_ms", -5_000)  # as if so long ago
    assert await places() == [1, 0]
    db.hincrby(f"record:{record}", "placed_ms", -5_000)
    assert await places() == [1, 0], "it has not changed again"


async def test_a_report_after_the_end_changes_nothing(us: Dispatcher, worker: WorkerQueue) -> None:
    record = await admit(us)
    delivery = await take(worker)
    await us.records.cancel(record)
    worker.acks.progress([(delivery, Progress(id=delivery.job.id, worker=worker.id, done=1, total=9, unit="steps"))])
    assert worker.start([delivery], 0) == []
    ended = await read(us, record)
    assert (ended.state, ended.progress, ended.events) == ("cancelled", None, 2)


async def test_progress_comes_from_worker_that_claimed_the_job(url: str, us: Dispatcher, worker: WorkerQueue, db: redis.Redis) -> None:
    """Prove it for a worker that stopped for so long that it was presumed dead. It may end the job nevertheless."""
    record = await admit(us)
    frozen = await take(worker)
    assert worker.start([frozen], 0)
    worker.withdraw()
    second = worker_queue(url, "second", QUICK_WORKER)
    claimed = await asyncio.to_thread(second.intake.reclaim, [QUEUE])
    assert claimed is not None
    for done in (0, 1):
        second.acks.progress([(claimed, Progress(id=claimed.job.id, worker="second", done=done, total=9, unit="steps"))])
        worker.acks.progress([(frozen, Progress(id=frozen.job.id, worker=worker.id, done=done + 5, total=9, unit="steps"))])
    second.close()
    [happened] = await us.records.events([(record, 2)])
    assert [json.loads(event.data)["done"] for event in happened.events] == [0, 1]
    assert worker.acks.finish([(frozen, echo(worker, frozen))]) == [True]
    assert (await read(us, record)).state == "done"


async def test_the_janitor_leaves_what_open_records_need(url: str, worker: WorkerQueue, db: redis.Redis) -> None:
    """Prove that it leaves the message of a job that Redis lost until a sweep queues it again."""
    async with gateway(url, replace(QUICK_GATEWAY, beat=60.0)) as quiet:
        record = await admit(quiet, 7)
        db.delete(f"job:{record}-0")
        assert worker.janitor()
        assert db.exists(f"blob:{record}-0")
        await quiet.records.sweep()
        assert db.exists(f"job:{record}-0")


@pytest.mark.parametrize(("waited", "first"), [(29_000, "high"), (31_000, "low")])
async def test_lost_recorded_job_is_requeued_at_its_place(url: str, worker: WorkerQueue, db: redis.Redis, waited: int, first: str) -> None:
    async with gateway(url, replace(QUICK_GATEWAY, beat=60.0)) as quiet:
        turns: list[dict[str, Any]] = [{"priority": "normal"}, {"priority": "low", "behind_ms": 20_000}]
        jobs = [msgspec.structs.replace(await a_job(quiet, value, **turn), gateway="") for value, turn in enumerate(turns)]
        made = await quiet.records.admit(
            msgspec.structs.replace(DRAFT, items=2, counted=2),
            b"\x80",
            lambda record: [msgspec.structs.replace(job, id=f"{record}-{i}", record=record) for i, job in enumerate(jobs)],
        )
        record, low = made.id, keys.stream(QUEUE, "low")

        def queue_entries() -> list[tuple[str, str, str]]:
            return [(stream, fields["id"], fields["at"]) for stream in (STREAM, low) for _, fields in db.xrange(stream)]

        before = queue_entries()
        db.delete(STREAM, low, *(f"job:{record}-{i}" for i in range(2)))
        await eventually_async(lambda: quiet.link.now_ms() > int(before[0][2]) + 5)
        await quiet.records.sweep()
        assert queue_entries() == before and len(before) == 2
        asking = asyncio.create_task(quiet.submitter.submit([await a_job(quiet, priority="high")]))
        await eventually_async(lambda: db.xlen(keys.stream(QUEUE, "high")) == 1)
        db.delete(STREAM)
        age_low_job(url, waited)
        [delivery] = worker.pull([QUEUE], 1)
        assert delivery.job.priority == first
        asking.cancel()


async def test_a_staged_message_that_was_lost_is_written_again(
    us: Dispatcher, worker: WorkerQueue, db: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = GatewayRedisLink.write_large
    lost: list[str] = []

    async def write_and_lose_the_first(link: GatewayRedisLink, key: str, data: bytes, is_wanted: Callable[[], bool] = lambda: True) -> None:
        await write(link, key, data, is_wanted)
        if not lost:
            lost.append(key)
            db.delete(key)

    monkeypatch.setattr(GatewayRedisLink, "write_large", write_and_lose_the_first)
    ballast = np.random.default_rng(0).integers(0, 256, 20 * INLINE_BYTES, np.uint8)
    record = await admit(us, 7, ballast=ballast)
    assert lost
    delivery = await take(worker)
    np.testing.assert_array_equal(delivery.job.arrays["ballast"].to_numpy(), ballast)
    worker.acks.finish([(delivery, echo(worker, delivery))])
    assert (await read(us, record)).state == "done"
    assert nothing_is_left(db)
    assert list(db.scan_iter("stage:*")) == []


async def test_a_deadline_ends_a_job_that_runs(us: Dispatcher, worker: WorkerQueue) -> None:
    record = await admit(us, seconds=3.0)
    delivery = await take(worker)
    await comes_to(us, record, "failed")
    assert worker.start([delivery], 0) == []
    failure = (await read(us, record)).failure
    assert failure is not None and failure.kind == "deadline"


FOREIGN: list[Callable[[redis.Redis, str], object]] = [
    lambda db, events: db.xadd(events, {"a": "b"}),
    lambda db, events: db.xadd(events, {"event": "done"}),
    lambda db, events: db.delete(events),
    lambda db, events: db.set(events, "x"),
]


@pytest.mark.parametrize("write", FOREIGN, ids=["an entry", "half an event", "a removal", "another type"])
async def test_foreign_entries_in_job_events_do_not_lose_its_end(
    us: Dispatcher, worker: WorkerQueue, db: redis.Redis, write: Callable[[redis.Redis, str], object]
) -> None:
    """Prove that only events up to the foreign entry may be lost. Later ones are reported, those of other jobs, too."""
    other = await admit(us)
    record = await admit(us)
    first, delivery = await take_two(worker)
    write(db, f"events:{record}")
    await us.records.events([(record, 0), (other, 0)])
    worker.acks.progress([(delivery, Progress(id=delivery.job.id, worker=worker.id, done=1, total=9, unit="steps"))])
    worker.acks.finish([(first, echo(worker, first)), (delivery, echo(worker, delivery))])
    [happened, elsewhere] = await us.records.events([(record, 1), (other, 0)])
    assert [event.name for event in happened.events][-1:] == ["done"]
    assert [event.name for event in elsewhere.events] == ["queued", "started", "progress", "done"]
    assert (await read(us, record)).state == "done"


async def test_janitor_removes_leftovers_of_deleted_record(us: Dispatcher, worker: WorkerQueue, db: redis.Redis) -> None:
    record, living = await admit(us, key="a"), await admit(us, key="b")
    db.delete(f"record:{record}")
    assert worker.janitor()
    assert list(db.scan_iter("events:*")) == [f"events:{living}"]
    assert [db.get(key) for key in db.scan_iter("idem:*")] == [living]


async def test_batch_of_requests_and_records_counts_once(us: Dispatcher, worker: WorkerQueue) -> None:
    """Prove it although two scripts end the batch, one of them for records."""
    later = await admit(us)
    now = asyncio.create_task(ask(us, 1))
    batch = await take_two(worker)
    timing = WorkerTiming(batch_wait_ms=1.0, inference_ms=10.0, worker_ms=12.0, batch_size=2)
    replies = [(one, msgspec.structs.replace(echo(worker, one), timing=timing)) for one in batch]
    assert worker.acks.finish(replies) == [True, True]
    assert await now == 1
    assert (await read(us, later)).state == "done"
    counts = await us.status.statistics(BUNDLE)
    assert (counts["execution_count"], counts["batch:2:count"], counts["inference_count"]) == (1, 1, 2)
    assert counts["batch:2:compute_infer_ns"] == 10_000_000
