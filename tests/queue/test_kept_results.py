"""Results of clients' jobs: how long they stay, and what they count for."""

from __future__ import annotations

import msgspec
import numpy as np
import redis

from server.queue.gateway.dispatcher import Dispatcher
from server.queue.gateway.submitter import INLINE_BYTES
from server.queue.messages import Array
from tests.queue.test_records import admit, read, stored, take, take_one
from tests.support.queue import WorkerQueue, echo, expect_refusal, gateway, records_load
from tests.support.waiting import eventually_async


async def test_a_large_result_that_nobody_wants_is_removed(us: Dispatcher, worker: WorkerQueue, db: redis.Redis) -> None:
    """The second answer to a job, and the answer to one that was cancelled."""
    first = await admit(us)
    delivery = await take(worker)
    assert worker.acks.finish([(delivery, stored(db, worker, delivery))]) == [True]
    assert worker.acks.finish([(delivery, stored(db, worker, delivery))]) == [False]
    assert (await read(us, first)).state == "done"
    second = await admit(us)
    delivery = await take(worker)
    await us.records.cancel(second)
    assert worker.acks.finish([(delivery, stored(db, worker, delivery))]) == [True]
    assert (await read(us, second)).state == "cancelled"
    assert list(db.scan_iter("out:*")) == []


async def test_a_result_whose_arrays_are_lost_is_no_result(us: Dispatcher, worker: WorkerQueue, db: redis.Redis) -> None:
    record = await admit(us)
    delivery = await take(worker)
    reply = stored(db, worker, delivery)
    db.delete(reply.stored)
    worker.acks.finish([(delivery, reply)])
    failed = await read(us, record)
    assert failed.failure is not None and failed.failure.kind == "job-lost"


async def test_what_is_kept_is_added_up_however_jobs_end(url: str, worker: WorkerQueue, db: redis.Redis) -> None:
    async with gateway(url, result_ttl=4.0) as us:
        done, cancelled, removed = await admit(us), await admit(us), await admit(us)
        delivery, *_ = [await take_one(worker) for _ in range(3)]
        worker.acks.finish([(delivery, echo(worker, delivery))])
        for record in (cancelled, removed, removed):
            await us.records.cancel(record)
        load = await records_load(us)
        assert load.counts == {"done": 1, "cancelled": 1}
        db.delete("records:totals")
        assert await records_load(us) == load
        await us.records.cancel(done)
        assert (await records_load(us)).counts == {"cancelled": 1}

        async def has_expired() -> bool:
            return (await records_load(us)).counts == {}

        await eventually_async(has_expired)
        assert (await records_load(us)).result_bytes == 0


async def test_records_of_cancelled_jobs_take_room_too(url: str) -> None:
    """Else whoever sends and cancels for an hour fills Redis."""
    async with gateway(url, results_max_bytes=100_000) as us:
        with expect_refusal("results"):
            for _ in range(100_000 // 4096):  # a stream of events takes a page of 4 KiB
                await us.records.cancel(await admit(us))


async def test_a_result_that_goes_while_it_is_read_is_gone(us: Dispatcher, worker: WorkerQueue, db: redis.Redis) -> None:
    """Its first piece has been read when it is removed."""
    record = await admit(us)
    delivery = await take(worker)
    reply = stored(db, worker, delivery)
    worker.acks.finish([(delivery, reply)])
    key = f"result:{record}-0:arrays"
    db.set(key, msgspec.msgpack.encode({"x": Array.from_numpy(np.zeros(INLINE_BYTES, np.uint8))})[:INLINE_BYTES])
    assert await us.records.replies(await read(us, record)) is None
    db.delete(key)
    assert await us.records.replies(await read(us, record)) is None
