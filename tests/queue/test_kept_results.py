"""Results of clients' jobs: how long they stay, and how they are counted."""

from __future__ import annotations

import msgspec
import numpy as np
import redis

from server.queue.gateway.dispatcher import Dispatcher
from server.queue.gateway.submitter import INLINE_BYTES
from server.queue.messages import Array
from tests.queue.test_records import admit, read, store_reply, take, take_one
from tests.support.queue import WorkerQueue, echo, expect_refusal, gateway, records_load
from tests.support.waiting import eventually_async


async def test_unneeded_large_results_are_removed(us: Dispatcher, worker: WorkerQueue, db: redis.Redis) -> None:
    """Prove it for a second answer to a job, and for an answer to a cancelled job."""
    first = await admit(us)
    delivery = await take(worker)
    assert worker.acks.finish([(delivery, store_reply(db, worker, delivery))]) == [True]
    assert worker.acks.finish([(delivery, store_reply(db, worker, delivery))]) == [False]
    assert (await read(us, first)).state == "done"
    second = await admit(us)
    delivery = await take(worker)
    await us.records.cancel(second)
    assert worker.acks.finish([(delivery, store_reply(db, worker, delivery))]) == [True]
    assert (await read(us, second)).state == "cancelled"
    assert list(db.scan_iter("out:*")) == []


async def test_a_result_whose_arrays_are_lost_fails_the_job(us: Dispatcher, worker: WorkerQueue, db: redis.Redis) -> None:
    record = await admit(us)
    delivery = await take(worker)
    reply = store_reply(db, worker, delivery)
    db.delete(reply.stored)
    worker.acks.finish([(delivery, reply)])
    failed = await read(us, record)
    assert failed.failure is not None and failed.failure.kind == "job-lost"
    assert (await records_load(us)).ended == {"failed": 1, "lost": 1}


async def test_stored_results_are_summed_however_jobs_end(url: str, worker: WorkerQueue, db: redis.Redis) -> None:
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


async def test_records_of_cancelled_jobs_count_as_results(url: str) -> None:
    """Prove that a client that submits and cancels for an hour cannot fill Redis."""
    async with gateway(url, results_max_bytes=100_000) as us:
        with expect_refusal("results"):
            for _ in range(100_000 // 4096):  # a stream of events takes a page of 4 KiB
                await us.records.cancel(await admit(us))


async def test_a_result_removed_while_it_is_read_is_gone(us: Dispatcher, worker: WorkerQueue, db: redis.Redis) -> None:
    """Remove it after its first piece was read."""
    record = await admit(us)
    delivery = await take(worker)
    reply = store_reply(db, worker, delivery)
    worker.acks.finish([(delivery, reply)])
    key = f"result:{record}-0:arrays"
    db.set(key, msgspec.msgpack.encode({"x": Array.from_numpy(np.zeros(INLINE_BYTES, np.uint8))})[:INLINE_BYTES])
    assert await us.records.replies(await read(us, record)) is None
    db.delete(key)
    assert await us.records.replies(await read(us, record)) is None
