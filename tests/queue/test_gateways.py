"""Lines 7, 8 and 10 of the contract in docs/queue.md: gateways and clients that leave, deadlines, payloads, orphans."""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import msgspec
import pytest
import redis

from server.queue import keys
from server.queue.gateway.connection import RespPool
from server.queue.gateway.dispatcher import Dispatcher
from server.queue.keys import Keyspace
from server.queue.script import Script
from server.queue.worker.worker_queue import JANITOR_KEYS, JANITOR_ROUNDS
from server.settings import Settings
from tests.support.queue import (
    DIGEST,
    QUEUE,
    QUICK_GATEWAY,
    QUICK_WORKER,
    SILENT_GATEWAY,
    STREAM,
    Consumer,
    WorkerQueue,
    a_job,
    announce,
    answer_of,
    ask,
    echo,
    gateway,
    nothing_is_left,
    pull_one,
    until_deadline,
    worker_queue,
)
from tests.support.redis import KEYSPACE
from tests.support.waiting import eventually_async


@pytest.mark.queue_line(7)
async def test_pull_drops_jobs_of_dead_gateway(url: str, worker: WorkerQueue, db: redis.Redis) -> None:
    async with gateway(url) as us, gateway(url, SILENT_GATEWAY) as dead:
        requests = asyncio.create_task(dead.submitter.submit([await a_job(dead, value) for value in range(5)]))
        ours = asyncio.create_task(ask(us, 8))
        await eventually_async(lambda: db.xlen(STREAM) == 6)
        db.delete(f"gw:{dead.id}")
        [taken] = await pull_one(worker, 6)
        assert taken.job.gateway == us.id
        assert db.xlen(STREAM) == 1
        worker.acks.finish([(taken, echo(worker, taken))])
        assert await ours == 8
        requests.cancel()


@pytest.mark.queue_line(7)
async def test_reply_to_dead_gateway_is_not_written(url: str, worker: WorkerQueue, db: redis.Redis) -> None:
    async with gateway(url) as gone:
        request = asyncio.create_task(gone.submitter.submit([await a_job(gone, 1)]))
        [taken] = await pull_one(worker)
    assert worker.acks.finish([(taken, echo(worker, taken))]) == [True]
    assert not db.exists(f"replies:{gone.id}")
    assert nothing_is_left(db)
    request.cancel()


@pytest.mark.queue_line(7)
async def test_gateway_has_new_id_and_its_reply_stream_is_bounded(url: str, db: redis.Redis) -> None:
    async with gateway(url) as us, gateway(url) as them:
        assert us.id != them.id
        async with Consumer(url):
            for value in range(20):
                assert await ask(us, value) == value
        stream = f"replies:{us.id}"
        await eventually_async(lambda: db.xlen(stream) <= 1)
        assert 0 < db.ttl(stream) <= 60
        assert 0 < db.pttl(f"gw:{us.id}") <= 2000
    assert not db.exists(stream, f"gw:{us.id}")


@pytest.mark.queue_line(8)
async def test_deadline_is_answered_by_gateway_and_job_cancelled(url: str, worker: WorkerQueue, db: redis.Redis) -> None:
    async with gateway(url) as us:
        job = await a_job(us, 1, seconds=1.0)
        with pytest.raises(TimeoutError):
            await until_deadline(us, [job])
        await eventually_async(lambda: db.xlen(STREAM) == 0)
        assert worker.pull([QUEUE], 16) == []
        assert not db.exists(f"job:{job.id}", f"cancel:{job.id}")
        assert db.get("queue:bytes") == "0"


@pytest.mark.queue_line(8)
async def test_leaving_client_is_cancelled_in_queue_and_before_batch(url: str, worker: WorkerQueue, db: redis.Redis) -> None:
    async with gateway(url) as us:
        jobs = [await a_job(us, value) for value in range(3)]
        leaving_early, leaving_late, staying = [asyncio.create_task(us.submitter.submit([job])) for job in jobs]
        await eventually_async(lambda: db.xlen(STREAM) == 3)
        leaving_early.cancel()
        await eventually_async(lambda: db.xlen(STREAM) == 2)
        db.set(keys.worker(worker.id), "")  # it lives, however slow this test runs
        taken = await pull_one(worker)
        assert {delivery.job.id for delivery in taken} == {jobs[1].id, jobs[2].id}
        leaving_late.cancel()
        await eventually_async(lambda: db.exists(f"cancel:{jobs[1].id}"))
        [staying_job] = worker.start(taken, 0)
        assert staying_job.job.id == jobs[2].id
        worker.acks.finish([(staying_job, echo(worker, staying_job))])
        assert answer_of((await staying)[0]) == 2
        assert nothing_is_left(db)


@pytest.mark.queue_line(8)
async def test_client_leaving_during_enqueue_takes_its_job_along(url: str, db: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prove it for a cancellation that overtakes the job on another connection."""
    run = RespPool.run
    on_its_way, cancelled, queued = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def enqueue_late(wire: RespPool, script: Script[Any, Any], *arguments: Any) -> Any:
        if script.name == "enqueue":
            on_its_way.set()
            await cancelled.wait()
        answer = await run(wire, script, *arguments)
        if script.name == "cancel":
            cancelled.set()
        if script.name == "enqueue":
            queued.set()
        return answer

    monkeypatch.setattr(RespPool, "run", enqueue_late)
    async with gateway(url) as us:
        job = await a_job(us, 1)
        request = asyncio.create_task(us.submitter.submit([job]))
        await on_its_way.wait()
        request.cancel()
        await queued.wait()
        await eventually_async(lambda: db.xlen(STREAM) == 0 and not db.exists(f"job:{job.id}"))


@pytest.mark.queue_line(8)
async def test_leaving_clients_leave_queue_without_a_worker(url: str, db: redis.Redis) -> None:
    """Prove that no place stays taken by a job that waits, one of a dead worker, or one that was handed back and waits again."""
    async with gateway(url) as us:
        dead = worker_queue(url, "dead")
        requests = [asyncio.create_task(us.submitter.submit([await a_job(us, 0)]))]
        await pull_one(dead)
        requests.append(asyncio.create_task(us.submitter.submit([await a_job(us, 1)])))
        [given_back] = await pull_one(dead)
        dead.intake.return_to_queue([given_back])
        requests.append(asyncio.create_task(us.submitter.submit([await a_job(us, 2)])))
        await eventually_async(lambda: db.xlen(STREAM) == 2 and db.xlen(f"{STREAM}:back") == 1)
        for request in requests:
            request.cancel()
        await eventually_async(lambda: nothing_is_left(db))
        dead.close()


@pytest.mark.queue_line(8)
async def test_late_reply_is_discarded(url: str, db: redis.Redis) -> None:
    async with gateway(url) as us, Consumer(url, "--hold") as consumer:
        late = asyncio.create_task(ask(us, 1, seconds=2.0))
        await consumer.next_batch()
        with pytest.raises(TimeoutError):
            await late
        consumer.release()
        await eventually_async(lambda: db.xlen(STREAM) == 0)
        later = asyncio.create_task(ask(us, 2))
        await consumer.next_batch()
        consumer.release()
        assert await later == 2


@pytest.mark.queue_line(8)
async def test_queue_recovers_after_four_in_five_clients_left(url: str, db: redis.Redis) -> None:
    chance = random.Random(0)
    async with gateway(url) as us:
        requests = [asyncio.create_task(ask(us, value)) for value in range(200)]
        leaving = set(chance.sample(range(200), 160))
        await eventually_async(lambda: db.xlen(STREAM) == 200)
        async with Consumer(url, "--pace", "0.02", "--batch", "4"):
            for value in leaving:
                requests[value].cancel()
            answers = await asyncio.gather(*requests, return_exceptions=True)
            assert [answers[value] for value in range(200) if value not in leaving] == [
                value for value in range(200) if value not in leaving
            ]
            await eventually_async(lambda: nothing_is_left(db))
            assert await asyncio.gather(*(ask(us, value) for value in range(20))) == list(range(20))


@pytest.mark.queue_line(10)
@pytest.mark.parametrize(("size", "blob_count"), [(200_000, 0), (300_000, 1)])
async def test_large_payload_has_a_blob_that_goes_with_its_job(url: str, db: redis.Redis, size: int, blob_count: int) -> None:
    async with gateway(url) as us:
        async with Consumer(url, "--hold") as consumer:
            job = await a_job(us, 6, ballast=bytearray(size))
            request = asyncio.create_task(us.submitter.submit([job]))
            await consumer.next_batch()
            assert db.exists(f"blob:{job.id}") == blob_count
            consumer.release()
            assert answer_of((await request)[0]) == 6
        assert nothing_is_left(db)


@pytest.mark.queue_line(10)
async def test_message_of_unknown_version_gets_error_reply(url: str, worker: WorkerQueue, db: redis.Redis) -> None:
    async with gateway(url) as us:
        job = msgspec.structs.replace(await a_job(us, 1), v=99)
        request = asyncio.create_task(us.submitter.submit([job]))
        await eventually_async(lambda: db.xlen(STREAM) == 1)
        assert worker.pull([QUEUE], 1) == []
        [reply] = await request
        assert reply.failure is not None
        assert reply.failure.kind == "unknown-version"
        assert "99" in reply.failure.detail
        assert nothing_is_left(db)


@pytest.mark.queue_line(10)
async def test_janitor_removes_abandoned_keys(url: str, worker: WorkerQueue, db: redis.Redis) -> None:
    async with gateway(url) as us:
        async with Consumer(url) as gone:
            assert await ask(us, 1) == 1
        await eventually_async(lambda: not db.exists(f"worker:{gone.id}"))
        db.set("blob:gone", "x")
        db.set("deaths:gone", 1)
        db.xadd("replies:gone", {"id": "x", "reply": "y"})
        db.incrby("queue:bytes", 12345)
        unserved = keys.stream(keys.queue("unserved@1", DIGEST), "low")
        stale = {"id": "stale", "gw": us.id, "until": "1000", "bytes": 1, "job": "x"}
        db.xadd(unserved, stale)
        db.sadd("queues", unserved)
        assert worker.janitor()
        assert not worker_queue(url, "another", QUICK_WORKER).janitor()
        assert not db.exists("blob:gone", "deaths:gone")
        assert db.ttl("replies:gone") > 0
        assert int(db.get("queue:bytes") or 0) == 0
        assert not db.exists(unserved)
        assert db.smembers("workers") == set()
        assert not db.exists(STREAM)
        assert db.smembers("queues") == db.smembers("streams") == set()


@pytest.mark.queue_line(10)
async def test_janitor_resumes_among_any_number_of_keys(url: str, db: redis.Redis, admin_db: redis.Redis) -> None:
    """Prove that in a Redis with many other keys each call reads a bounded number, and later calls read the rest."""
    every_key = JANITOR_KEYS * JANITOR_ROUNDS * 3
    with admin_db.pipeline(transaction=False) as pipeline:
        for number in range(every_key):
            pipeline.set(f"other:{number}", "x")
        pipeline.execute()
    orphans = [f"blob:{number}" for number in range(20)]
    for orphan in orphans:
        db.set(orphan, "x")
    janitors = [worker_queue(url, f"janitor-{number}", QUICK_WORKER) for number in range(5)]
    for janitor in janitors:
        assert janitor.janitor()
        db.delete("janitor")  # the next one's turn has come
    assert not db.exists(*orphans)
    assert db.dbsize() >= every_key


@pytest.mark.queue_line(10)
async def test_janitor_keeps_streams_of_live_workers(url: str, db: redis.Redis, worker: WorkerQueue) -> None:
    async with gateway(url) as us:
        announce(worker)
        assert worker.pull([QUEUE], 1, 10) == []
        waiting = asyncio.create_task(pull_one(worker, 1))
        await eventually_async(
            lambda: any(client["cmd"] == "xreadgroup" and "b" in client["flags"] for client in db.client_list()), "it waits for jobs"
        )
        assert worker_queue(url, "another", QUICK_WORKER).janitor()
        assert set(keys.streams(QUEUE)) == db.smembers("streams")
        request = asyncio.create_task(ask(us, 1))
        [taken] = await waiting
        worker.acks.finish([(taken, echo(worker, taken))])
        assert await request == 1


@pytest.mark.queue_line(10)
async def test_janitor_cleans_up_full_redis(url: str, db: redis.Redis, worker: WorkerQueue) -> None:
    db.set("blob:gone", "x")
    db.config_set("maxmemory", 1)
    try:
        assert worker.janitor()
    finally:
        db.config_set("maxmemory", 0)
    assert not db.exists("blob:gone")


async def test_full_redis_is_emptied_by_worker_of_new_bundle(url: str, db: redis.Redis, worker: WorkerQueue) -> None:
    """Prove it for streams that have no groups yet."""
    async with gateway(url) as us:
        request = asyncio.create_task(ask(us, 5))
        await eventually_async(lambda: db.exists(STREAM))
        db.config_set("maxmemory", 1)
        try:
            [delivery] = await pull_one(worker)
            worker.acks.finish([(delivery, echo(worker, delivery))])
        finally:
            db.config_set("maxmemory", 0)
        assert await request == 5


@pytest.mark.skipif(bool(os.environ.get("OPSIN_TEST_REDIS")), reason="keys of another prefix may not be touched there")
async def test_a_prefix_may_hold_any_letters(url: str) -> None:
    settings, keyspace = Settings(key_prefix="größe:", cell=KEYSPACE.cell), Keyspace("größe:", KEYSPACE.cell)
    us, queue = Dispatcher(url, settings, QUICK_GATEWAY), WorkerQueue(url, "w", QUICK_WORKER, keyspace=keyspace)
    await us.start()
    assert queue.pull([QUEUE], 4) == []  # so that the next look waits, by another command
    waiting = asyncio.create_task(pull_one(queue))
    request = asyncio.create_task(ask(us, 3))
    [delivery] = await waiting
    queue.acks.finish([(delivery, echo(queue, delivery))])
    assert await request == 3
    queue.close()
    await us.close()
