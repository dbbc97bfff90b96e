"""Lines 1 and 2 of the contract in docs/queue.md: admission to the queue."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.queue.connect import RedisUnavailable
from server.queue.gateway.dispatcher import Dispatcher
from server.queue.gateway.reservations import CHECK_ADMISSION, WORK_IN_COMMON_MS, Load, bounds, is_calm
from server.queue.gateway.submitter import MAX_CALL_BYTES
from server.queue.script import AdmissionChecks, Claim, DeadlineExceeded, Promises, QueueAmount, Refused
from server.settings import Settings
from tests.support.queue import (
    BUNDLE,
    QUICK_GATEWAY,
    STREAM,
    Consumer,
    WorkerQueue,
    a_job,
    announce,
    answer_of,
    ask,
    expect_refusal,
    gateway,
    nothing_is_left,
    reserve,
)
from tests.support.redis import KEYSPACE
from tests.support.waiting import eventually_async


async def is_full(dispatcher: Dispatcher, items: int) -> bool:
    """Return whether a gateway refuses these items. It learns at its next beat what others queued; the enqueue script knows at once."""
    try:
        async with reserve(dispatcher, items, 1, Claim()):
            return False
    except Refused:
        return True


@pytest.mark.queue_line(1)
async def test_reservation_holds_its_place_until_released(url: str) -> None:
    async with gateway(url, queue_max_items=2, queue_max_bytes=1000) as us:
        async with reserve(us, 1, 600, Claim()):
            with expect_refusal("full"):
                await us.reservations.reserve(Claim()).resize(1, 600)
            with expect_refusal("full"):
                await us.reservations.reserve(Claim()).resize(2, 10)
            async with reserve(us, 1, 400, Claim()):
                pass
        async with reserve(us, 2, 1000, Claim()):
            pass


@pytest.mark.queue_line(1)
async def test_reservation_counts_once_across_gateways(url: str) -> None:
    async with gateway(url, queue_max_items=2) as us, gateway(url, queue_max_items=2) as them:
        async with Consumer(url, "--hold") as consumer, reserve(us, 1, 100, Claim()) as reservation:
            running = asyncio.create_task(us.submitter.submit([await a_job(us, 7)], reservation=reservation))
            await consumer.next_batch()
            async with reserve(them, 1, 100, Claim()):
                pass
            await eventually_async(lambda: is_full(them, 2))
            consumer.release()
            assert [answer_of(reply) for reply in await running] == [7]
        async with reserve(them, 2, 100, Claim()):
            pass


@pytest.mark.queue_line(1)
async def test_retry_after_is_wait_at_announced_throughput(url: str, worker: WorkerQueue) -> None:
    async with gateway(url, queue_max_items=9) as us:
        announce(worker, items_per_second=0.25)
        await us.fleet.read(fresh=True)
        jobs = [await a_job(us, value, work_ms=us.fleet.latest.work_ms(BUNDLE, None, takes_long=False)) for value in range(9)]
        waiting = asyncio.create_task(us.submitter.submit(jobs))
        await eventually_async(lambda: is_full(us, 1))
        for items, seconds in ((1, 4), (3, 12), (9, 36)):
            with expect_refusal("full", wait_s=seconds):  # one in 4 s
                await us.reservations.reserve(Claim()).resize(items, 1)
        waiting.cancel()


@pytest.mark.queue_line(2)
async def test_existing_job_is_not_queued_twice(url: str, db: redis.Redis) -> None:
    async with gateway(url) as us:
        job = await a_job(us, 1)
        first = asyncio.create_task(us.submitter.submit([job]))
        await eventually_async(lambda: db.exists(f"job:{job.id}"))
        companion = await a_job(us, 2)
        second = asyncio.create_task(us.submitter.submit([job, companion]))
        await eventually_async(lambda: db.exists(f"job:{companion.id}"))
        assert [entry["id"] for _, entry in db.xrange(STREAM)] == [job.id, companion.id]
        assert 0 < db.pttl(f"job:{job.id}") <= 130_000
        first.cancel()
        second.cancel()


@pytest.mark.queue_line(2)
async def test_limit_holds_exactly_when_gateways_race(url: str, db: redis.Redis) -> None:
    async with gateway(url, queue_max_items=10) as us, gateway(url, queue_max_items=10) as them:
        jobs = [(dispatcher, await a_job(dispatcher, value)) for value in range(20) for dispatcher in (us, them)]
        requests = [asyncio.create_task(dispatcher.submitter.submit([job])) for dispatcher, job in jobs]
        await eventually_async(lambda: sum(request.done() for request in requests) == 30)
        assert all(isinstance(request.exception(), Refused) for request in requests if request.done())
        assert db.xlen(STREAM) == 10
        for request in requests:
            request.cancel()


@pytest.mark.queue_line(2)
async def test_images_of_a_request_are_queued_all_or_none(url: str, db: redis.Redis) -> None:
    async with gateway(url, queue_max_items=3) as us:
        with expect_refusal("full"):
            await us.submitter.submit([await a_job(us, value) for value in range(4)])
        assert nothing_is_left(db)


@pytest.mark.queue_line(2)
async def test_limit_of_bytes_holds(url: str, db: redis.Redis) -> None:
    async with gateway(url, queue_max_bytes=10_000) as us:
        with expect_refusal("full"):
            await us.submitter.submit([await a_job(us, 1, ballast=bytearray(10_000))])
        assert nothing_is_left(db)


@pytest.mark.queue_line(2)
async def test_redis_without_memory_is_full_queue_and_recovers(url: str, db: redis.Redis) -> None:
    async with gateway(url) as us, Consumer(url, "--hold") as consumer:
        running = asyncio.create_task(ask(us, 5))
        await consumer.next_batch()
        db.config_set("maxmemory", 1)
        try:
            with expect_refusal("memory"):
                await ask(us, 6)
            consumer.release()
            assert await running == 5
        finally:
            db.config_set("maxmemory", 0)
        later = asyncio.create_task(ask(us, 7))
        await consumer.next_batch()
        consumer.release()
        assert await later == 7


async def scripts_called(db: redis.Redis) -> int:
    return int(db.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0))


async def test_requests_of_one_loop_turn_share_a_call(url: str, db: redis.Redis) -> None:
    async with gateway(url, replace(QUICK_GATEWAY, beat=60.0), queue_max_items=7) as us:
        fits, does_not, late, fits_too = [[await a_job(us, value) for value in range(count)] for count in (3, 5, 1, 4)]
        late = [msgspec.structs.replace(late[0], deadline_ms=int(us.link.now_ms()) + 1)]
        db.config_resetstat()
        requests = [asyncio.create_task(us.submitter.submit(jobs)) for jobs in (fits, does_not, late, fits_too)]
        await eventually_async(lambda: db.xlen(STREAM) == 7)
        assert await scripts_called(db) <= 4  # one for all of them; the load, for Retry-After; the clock, for the late one; a cancellation
        assert {fields["id"] for _, fields in db.xrange(STREAM)} == {job.id for job in fits + fits_too}
        with expect_refusal("full"):
            await requests[1]
        with pytest.raises(DeadlineExceeded):
            await requests[2]
        for request in (requests[0], requests[3]):
            assert not request.done()
            request.cancel()


async def test_bytes_that_share_a_call_are_bounded(url: str, db: redis.Redis) -> None:
    async with gateway(url, replace(QUICK_GATEWAY, beat=60.0)) as us:
        jobs = [await a_job(us, value, ballast=bytearray(MAX_CALL_BYTES // 5)) for value in range(12)]
        db.config_resetstat()
        requests = [asyncio.create_task(us.submitter.submit([job])) for job in jobs]
        await eventually_async(lambda: db.xlen(STREAM) == 12)
        assert 3 <= await scripts_called(db) <= 5
        for request in requests:
            request.cancel()


async def test_reservations_of_one_loop_turn_share_a_call(url: str, db: redis.Redis) -> None:
    async with gateway(url, replace(QUICK_GATEWAY, beat=60.0), queue_max_items=8) as us, reserve(us, 5, 1, Claim()):
        db.config_resetstat()
        asking = [us.reservations.reserve(Claim()) for _ in range(5)]
        answers = await asyncio.gather(*(one.resize(1, 1) for one in asking), return_exceptions=True)
        assert [getattr(answer, "reason", None) for answer in answers] == [None, None, None, "full", "full"]
        assert await scripts_called(db) == 1


async def test_jobs_on_their_way_are_not_counted_twice(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prove it for a check with their reservation that reaches Redis only after the jobs."""
    async with gateway(url, queue_max_items=2) as us:
        run, requests, first = us.link.run, list[asyncio.Task[object]](), us.reservations.reserve(Claim("first"))
        await first.resize(1, 0)

        async def overtaken(script: Any, *arguments: Any) -> Any:
            if script is CHECK_ADMISSION and not requests:
                admitted, job = asyncio.Event(), await a_job(us, owner="first")
                requests.append(asyncio.create_task(us.submitter.submit([job], reservation=first, on_admitted=lambda _: admitted.set())))
                await admitted.wait()
            return await run(script, *arguments)

        monkeypatch.setattr(us.link, "run", overtaken)
        await us.reservations.reserve(Claim("second")).resize(1, 0)
        assert len(requests) == 1
        with pytest.raises(Refused):
            await us.reservations.reserve(Claim("third")).resize(1, 0)
        requests[0].cancel()
        await asyncio.gather(*requests, return_exceptions=True)


async def test_reservation_grows_within_the_allowed_amount(url: str, db: redis.Redis) -> None:
    """Prove that the pieces of a slow body need no calls of their own."""
    timings = replace(QUICK_GATEWAY, beat=60.0, fresh_load=60.0)
    async with gateway(url, timings, queue_max_bytes=1000) as us, reserve(us, 1, 600, Claim()) as reservation:
        db.config_resetstat()
        for nbytes in range(600, 1001):
            await reservation.resize(1, nbytes)
        assert await scripts_called(db) <= 1  # at the last eighth
        with expect_refusal("full"):
            await reservation.resize(1, 1001)


async def test_unreadable_counts_in_redis_refuse_no_reservation(url: str, db: redis.Redis) -> None:
    """Prove that they wait for the grace of Redis."""
    async with gateway(url, queue_max_items=4, redis_grace=0.3) as us:
        waiting = asyncio.create_task(us.submitter.submit([await a_job(us, value, owner="first") for value in range(3)]))
        await eventually_async(lambda: db.xlen(STREAM) == 3)
        db.delete("queue:owners")
        db.set("queue:owners", "foreign content")
        async with reserve(us, 1, 1, Claim("second")):
            pass
        with pytest.raises(RedisUnavailable):
            await us.submitter.submit([await a_job(us, 1, owner="second")])
        db.delete("queue:owners")
        waiting.cancel()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_gateway_admits_only_what_the_script_would(admin_db: redis.Redis, db: redis.Redis, data: st.DataObject) -> None:
    """Prove that whatever a gateway admits by its own rule, `parts/admission.lua` would admit, too."""

    def up_to(max_value: int) -> int:
        return data.draw(st.integers(0, max_value))

    def part(amount: QueueAmount) -> QueueAmount:
        return QueueAmount(up_to(amount.items), up_to(amount.nbytes))

    def less(amount: QueueAmount, gone: QueueAmount) -> QueueAmount:
        return QueueAmount(amount.items - gone.items, amount.nbytes - gone.nbytes)

    def usage() -> str:
        own_part = part(present)
        last = part(own_part)
        return f"{own_part.items} {own_part.nbytes} {up_to(load.work_ms)} {last.items} {last.nbytes}"

    limits = bounds(Settings(queue_max_items=1 + up_to(40), queue_max_bytes=1 + up_to(4000)))
    present = part(limits.low)
    load = Load(present.items, present.nbytes, up_to(WORK_IN_COMMON_MS))
    promised = part(less(limits.low, present))
    requested = part(less(less(limits.low, present), promised))
    own_part = part(promised)
    promises = Promises(promised, own_part, part(promised), part(own_part))
    claim = Claim("us", data.draw(st.booleans()), data.draw(st.booleans()), 0, requested.items, requested.nbytes, 1000, promised=promises)
    assert is_calm(load, promised, claim, limits)
    db.flushall()
    db.set("queue:bytes", load.nbytes)
    db.set("queue:work", load.work_ms)
    db.sadd("queue:jobs", "none", *range(load.items))
    db.srem("queue:jobs", "none")
    db.hset("queue:owners", mapping={"us": usage(), "low": usage()})
    answer = admin_db.eval(CHECK_ADMISSION.source, 1, KEYSPACE.name(""), *CHECK_ADMISSION.arguments(AdmissionChecks(limits, [claim])))
    assert answer[-1][0][0] == b""
