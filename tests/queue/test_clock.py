"""Redis' clock is set while jobs wait: forward, as after a computer's sleep, and back. Tests write the keys and ids that it leaves."""

from __future__ import annotations

import asyncio

import pytest
import redis

from server.queue.gateway.connection import GatewayRedisLink
from server.queue.gateway.dispatcher import Dispatcher
from tests.queue.test_records import admit, read
from tests.support.queue import QUEUE, STREAM, WorkerQueue, a_job, answer_of, ask, echo, gateway, pull_one, redis_at
from tests.support.waiting import eventually_async

HOUR_MS = 3_600_000


async def state(us: Dispatcher, record: str) -> str:
    return (await read(us, record)).state


async def test_job_with_keys_expired_by_clock_jump_is_answered(
    url: str, worker: WorkerQueue, db: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gateway(url) as us:
        request = asyncio.create_task(us.submitter.submit([await a_job(us, 7)]))
        [lost] = await pull_one(worker)
        set_clock = GatewayRedisLink.set_clock
        monkeypatch.setattr(GatewayRedisLink, "set_clock", lambda self, redis_ms: set_clock(self, redis_ms + HOUR_MS))
        db.delete(f"job:{lost.job.id}")
        worker.link.set_clock(lost.job.deadline_ms + HOUR_MS)
        assert worker.start([lost], 0) == []  # for all that the worker knows, it has ended
        [again] = await pull_one(worker)
        assert again.job.id == lost.job.id
        assert again.job.deadline_ms - lost.job.deadline_ms == pytest.approx(HOUR_MS, abs=1000)
        worker.acks.finish([(again, echo(worker, again))])
        [reply] = await request
        assert answer_of(reply) == 7


async def fall_behind(us: Dispatcher) -> None:
    """Set this gateway's clock back, as if Redis' clock had been set an hour forward since the gateway read it."""
    us.link.set_clock(int(us.link.now_ms()) - HOUR_MS)


async def test_job_sent_before_clock_jump_is_noticed_is_answered(url: str, worker: WorkerQueue) -> None:
    async with gateway(url) as us:
        await fall_behind(us)
        request = asyncio.create_task(us.submitter.submit([await a_job(us, 7)]))
        [job] = await pull_one(worker)
        worker.acks.finish([(job, echo(worker, job))])
        [reply] = await request
        assert answer_of(reply) == 7
        await fall_behind(us)
        record = await admit(us)
        [job] = await pull_one(worker)
        worker.acks.finish([(job, echo(worker, job))])

        async def done() -> bool:
            return await state(us, record) == "done"

        await eventually_async(done)


async def test_stale_turn_after_clock_went_back_does_not_block_sweep(url: str, db: redis.Redis) -> None:
    async with gateway(url) as us:
        db.set("records:sweep", "other", px=HOUR_MS)
        record = await admit(us, seconds=0.5)

        async def failed() -> bool:
            return await state(us, record) == "failed"

        await eventually_async(failed, seconds=10)


def test_stale_turn_after_clock_went_back_does_not_block_janitor(worker: WorkerQueue, db: redis.Redis) -> None:
    db.set("janitor", "other", px=HOUR_MS)

    assert worker.janitor()
    assert not worker.janitor()


def test_dead_processes_expire_although_the_clock_went_back(worker: WorkerQueue, db: redis.Redis) -> None:
    for kind, list_ in (("worker", "workers"), ("gw", "gateways")):
        db.set(f"{kind}:dead", "", px=HOUR_MS)
        db.set(f"{kind}:alive", "", px=3000)
        db.sadd(list_, "dead", "alive")

    assert worker.janitor()

    for kind in ("worker", "gw"):
        assert 0 < db.pttl(f"{kind}:dead") <= 120_000
        assert 0 < db.pttl(f"{kind}:alive") <= 3000


async def test_jobs_after_clock_went_back_are_ranked_by_their_time(url: str, worker: WorkerQueue, db: redis.Redis) -> None:
    async with gateway(url) as us:
        to_come = int(db.time()[0]) * 1000 + HOUR_MS
        db.xadd(STREAM, {"id": "none"}, id=f"{to_come}-0")  # the ids of this stream do not go back
        db.xdel(STREAM, f"{to_come}-0")
        low = asyncio.create_task(ask(us, 1, priority="low"))
        await eventually_async(lambda: db.xlen(f"queue:{QUEUE}:low") == 1)
        normal = asyncio.create_task(ask(us, 2))
        await eventually_async(lambda: db.xlen(STREAM) == 1)

        first = (await pull_one(worker, 1))[0]
        assert first.job.priority == "normal"
        assert first.added_ms < to_come - HOUR_MS / 2
        second = (await pull_one(worker, 1))[0]
        worker.acks.finish([(job, echo(worker, job)) for job in (first, second)])
        assert await low == 1
        assert await normal == 2


async def test_job_queued_before_the_clock_went_back_goes_first(url: str, worker: WorkerQueue, db: redis.Redis) -> None:
    async with gateway(url) as us:
        before = asyncio.create_task(ask(us, 1, priority="low"))
        stream = f"queue:{QUEUE}:low"
        await eventually_async(lambda: db.xlen(stream) == 1)
        with redis_at(url) as raw:
            [(entry, job)] = raw.xrange(stream)
            raw.xdel(stream, entry)
            to_come = int(db.time()[0]) * 1000 + HOUR_MS
            raw.xadd(stream, {**job, b"at": str(to_come)}, id=f"{to_come}-0")
        after = asyncio.create_task(ask(us, 2))
        await eventually_async(lambda: db.xlen(STREAM) == 1)

        first = (await pull_one(worker, 1))[0]
        assert first.job.priority == "low"
        second = (await pull_one(worker, 1))[0]
        worker.acks.finish([(job, echo(worker, job)) for job in (first, second)])
        assert await before == 1
        assert await after == 2
