"""Line 10: large messages are keys of their own, written and read in pieces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import redis

from server.queue import keys
from server.queue.connect import CHUNK_BYTES
from server.queue.gateway.connection import GatewayRedisLink
from server.queue.messages import Array, Reply, decode
from server.queue.worker.delivery import Delivery, QueueEntry
from tests.support.queue import QUEUE, STREAM, WorkerQueue, a_job, ask, echo, gateway, nothing_is_left, pull_one, redis_at, worker_queue
from tests.support.waiting import eventually_async

LARGE = 3 * CHUNK_BYTES + 12_345


async def take(worker: WorkerQueue, items: int = 16) -> list[QueueEntry]:
    return await asyncio.to_thread(worker.intake.take, [QUEUE], items, 2000)


async def test_pull_omits_large_message_and_worker_reads_it_later(url: str, db: redis.Redis, worker: WorkerQueue) -> None:
    async with gateway(url) as us:
        ballast = np.random.default_rng(0).integers(0, 256, LARGE, np.uint8)
        request = asyncio.create_task(ask(us, 7, ballast=ballast))
        [entry] = await take(worker)
        assert not isinstance(entry, Delivery)
        assert entry.queue == QUEUE
        delivery = worker.intake.fetch(entry)
        assert delivery is not None
        np.testing.assert_array_equal(delivery.job.arrays["ballast"].to_numpy(), ballast)
        worker.acks.finish([(delivery, echo(worker, delivery))])
        assert await request == 7
        assert nothing_is_left(db)


async def test_large_job_with_lost_message_is_resent_by_gateway(url: str, db: redis.Redis, worker: WorkerQueue) -> None:
    async with gateway(url) as us:
        request = asyncio.create_task(ask(us, 7, ballast=np.zeros(LARGE, np.uint8)))
        [entry] = await take(worker)
        assert not isinstance(entry, Delivery)
        db.delete(f"blob:{entry.job_id}")
        assert worker.intake.fetch(entry) is None
        [delivery] = await pull_one(worker)
        worker.acks.finish([(delivery, echo(worker, delivery))])
        assert await request == 7
        assert nothing_is_left(db)


async def test_an_unread_job_can_be_handed_back(url: str, worker: WorkerQueue) -> None:
    leaving = worker_queue(url, "leaving")
    async with gateway(url) as us:
        request = asyncio.create_task(ask(us, 7, ballast=np.zeros(LARGE, np.uint8)))
        unread = await take(leaving)
        leaving.intake.return_to_queue(unread)
        [again] = await pull_one(worker)
        assert (again.job.id, again.stream) == (unread[0].job_id, f"{STREAM}:back")
        worker.acks.finish([(again, echo(worker, again))])
        assert await request == 7


async def test_a_dead_letter_holds_no_large_message(url: str, db: redis.Redis, worker: WorkerQueue) -> None:
    async with gateway(url) as us:
        request = asyncio.create_task(us.submitter.submit([await a_job(us, 4, ballast=np.zeros(LARGE, np.uint8))]))
        [delivery] = await pull_one(worker)
        worker.acks.dead_letter(delivery, "ValueError: no", "model-error")
        await request
        [(_, letter)] = db.xrange("dead")
        assert (letter["job"], int(letter["bytes"])) == ("", delivery.nbytes)


@pytest.mark.queue_line(2)
async def test_large_output_is_answered_by_redis_without_memory(url: str, db: redis.Redis, worker: WorkerQueue) -> None:
    output = {"y": Array.from_numpy(np.arange(200_000, dtype=np.float32))}
    async with gateway(url) as us:
        request = asyncio.create_task(us.submitter.submit([await a_job(us, 1)]))
        [taken] = await pull_one(worker)
        db.config_set("maxmemory", 1)
        try:
            reply = Reply(id=taken.job.id, worker=worker.id, arrays=output)
            assert await asyncio.wait_for(asyncio.to_thread(worker.acks.finish, [(taken, reply)]), 10) == [True]
            [answer] = await request
        finally:
            db.config_set("maxmemory", 0)
        assert answer.arrays == output
        await eventually_async(lambda: not db.keys("out:*"))


async def test_a_large_output_is_written_in_pieces(url: str, worker: WorkerQueue) -> None:
    output = Array.from_numpy(np.random.default_rng(1).integers(0, 256, LARGE, np.uint8))
    with redis_at(url) as raw:
        raw.set("gw:us", "")
        delivery = await deliver(url, worker, "us")
        assert worker.acks.finish([(delivery, Reply(id=delivery.job.id, worker=worker.id, arrays={"y": output}))]) == [True]
        [(_, entry)] = raw.xrange("replies:us")
        reply = decode(Reply, entry[delivery.job.id.encode()])
        assert msgspec.msgpack.decode(raw.get(reply.stored), type=dict[str, Array]) == {"y": output} and not reply.arrays
        assert 0 < raw.ttl(reply.stored) <= 120


async def test_a_large_output_arrives(url: str, db: redis.Redis, worker: WorkerQueue) -> None:
    output = {"y": Array.from_numpy(np.random.default_rng(2).integers(0, 256, LARGE, np.uint8))}
    async with gateway(url) as us:
        request = asyncio.create_task(us.submitter.submit([await a_job(us, 1)]))
        [delivery] = await pull_one(worker)
        worker.acks.finish([(delivery, Reply(id=delivery.job.id, worker=worker.id, arrays=output))])
        [reply] = await request
        assert (reply.arrays, reply.stored) == (output, "")
        await eventually_async(lambda: not list(db.scan_iter("out:*")))


async def test_output_of_a_second_answer_is_deleted(url: str, db: redis.Redis, worker: WorkerQueue) -> None:
    with redis_at(url) as raw:
        raw.set("gw:us", "")
        delivery = await deliver(url, worker, "us")
        output = {"y": Array.from_numpy(np.zeros(LARGE, np.uint8))}
        replies = [Reply(id=delivery.job.id, worker=worker.id, arrays=output) for _ in range(2)]
        assert [worker.acks.finish([(delivery, reply)]) for reply in replies] == [[True], [False]]
        assert len(list(raw.scan_iter("out:*"))) == 1


async def test_message_of_client_leaving_at_last_piece_is_removed(url: str, db: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    write = GatewayRedisLink.write_large
    written = asyncio.Event()

    async def write_and_lose_the_client(
        link: GatewayRedisLink, key: str, data: bytes, is_wanted: Callable[[], bool] = lambda: True
    ) -> None:
        await write(link, key, data, is_wanted)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        written.set()

    monkeypatch.setattr(GatewayRedisLink, "write_large", write_and_lose_the_client)
    async with gateway(url) as us:
        request = asyncio.create_task(ask(us, 7, ballast=np.zeros(LARGE, np.uint8)))
        await written.wait()
        await eventually_async(lambda: not db.keys("stage:*"))


async def deliver(url: str, worker: WorkerQueue, to: str) -> Delivery:
    """Pull a job whose answer goes to the gateway `to`, which needs only a key."""
    async with gateway(url) as us:
        job = msgspec.structs.replace(await a_job(us, 1), gateway=to)
        request = asyncio.create_task(us.submitter.submit([job]))
        with redis_at(url) as raw:
            raw.set(keys.worker(worker.id), "")  # a client that leaves does not take a living worker's job away
        [delivery] = await pull_one(worker)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    return delivery
