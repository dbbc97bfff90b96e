"""Share of the queue that one client may hold while others are waiting, and how exactly it is counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import msgspec
import pytest
import redis
from msgspec.structs import replace

from server.gateway.auth.key_file import ANONYMOUS_KEY
from server.gateway.inference.admission import Admission, RequestContext
from server.queue.gateway.dispatcher import Dispatcher
from server.queue.gateway.fleet import LONG_JOB_MS, PASS_MS
from server.queue.messages import QueuedJob, ServedBundle, WorkerInfo
from server.queue.script import Claim
from tests.support.queue import (
    BUNDLE,
    DIGEST,
    DRAFT,
    STREAM,
    WorkerQueue,
    a_job,
    echo,
    expect_refusal,
    gateway,
    nothing_is_left,
    pull_one,
    reserve,
    worker_queue,
)
from tests.support.waiting import eventually_async

MINUTE = 60_000


async def submit(
    us: Dispatcher, owner: str, items: int = 1, work_ms: int = 0, max_items: int = 0, **options: object
) -> asyncio.Task[object]:
    """Submit a request, and return it once it is admitted. Raises the refusal."""
    jobs = [await a_job(us, owner=owner, work_ms=work_ms, **options) for _ in range(items)]
    admitted, claim = asyncio.Event(), Claim(owner, max_items=max_items)
    request = asyncio.create_task(
        us.submitter.submit(jobs, reservation=us.reservations.reserve(claim), on_admitted=lambda _: admitted.set())
    )
    waiting = asyncio.create_task(admitted.wait())
    await asyncio.wait({request, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if request.done():
        await request
    return request


async def record(us: Dispatcher, owner: str, items: int = 1, work_ms: int = 0, max_items: int = 0, **options: object) -> str:
    """Admit a record of such a request, and return its id. Raises the refusal."""
    jobs = [await a_job(us, owner=owner, work_ms=work_ms, **options) for _ in range(items)]

    def make_jobs(record: str) -> list[QueuedJob]:
        return [msgspec.structs.replace(job, id=f"{record}-{index}", record=record, gateway="") for index, job in enumerate(jobs)]

    return (await us.records.admit(replace(DRAFT, bound=0), b"\x80", make_jobs, max_items=max_items)).id


WAYS = {"at once": submit, "later": record}


@pytest.fixture(params=WAYS)
def ask(request: pytest.FixtureRequest) -> object:
    return WAYS[request.param]


@asynccontextmanager
async def a_queue(url: str, **limits: int) -> AsyncIterator[Dispatcher]:
    async with gateway(url, **limits) as us:
        yield us


async def test_owner_holds_three_quarters_and_others_find_room(url: str, ask) -> None:
    async with a_queue(url, queue_max_items=16) as us:
        await submit(us, "greedy", 12)
        with expect_refusal("client"):
            await ask(us, "greedy")
        await ask(us, "modest")
        await submit(us, "another")


async def test_all_low_work_holds_half_and_others_find_room(url: str, ask) -> None:
    async with a_queue(url, queue_max_items=16) as us:
        for owner in ("bulk", "another"):
            await submit(us, owner, 4, priority="low", low=True)
        with expect_refusal("low") as refusal:
            await ask(us, "third", priority="low", low=True)
        assert (refusal.value.outcome.items, refusal.value.outcome.max_items) == (8, 8)
        await ask(us, "third")
        await submit(us, "third", priority="low", behind_ms=1)  # the rest of a larger request is not low work


async def test_all_low_work_holds_half_of_the_bytes(url: str, ask) -> None:
    async with a_queue(url, queue_max_bytes=100_000) as us:
        await submit(us, "bulk", priority="low", low=True, ballast=bytearray(40_000))
        with expect_refusal("low"):
            await ask(us, "another", priority="low", low=True, ballast=bytearray(20_000))
        await ask(us, "another", ballast=bytearray(20_000))


async def test_finished_low_work_makes_room_and_janitor_recounts(url: str, db: redis.Redis) -> None:
    async with a_queue(url, queue_max_items=4) as us:
        first = await submit(us, "bulk", 2, priority="low", low=True)
        db.hset("queue:owners", "low", "0 0 0 0 0")  # as if the count were lost
        assert worker_queue(url, "janitor").janitor()
        with expect_refusal("low"):
            await submit(us, "bulk", priority="low", low=True)
        first.cancel()
        await eventually_async(lambda: not db.exists("queue:owners"))
        await submit(us, "bulk", 2, priority="low", low=True)


async def test_low_request_above_half_of_queue_is_never_admitted(url: str, ask) -> None:
    async with a_queue(url, queue_max_items=16) as us:
        with expect_refusal("low-never", "async-items") as refusal:
            await ask(us, "bulk", 9, priority="low", low=True)
        assert (refusal.value.outcome.items, refusal.value.outcome.max_items) == (9, 8)
        async with reserve(us, 5, 0, Claim("bulk", low=True)) as place:
            with expect_refusal("low-never"):
                await place.resize(9, 0)
            await place.resize(8, 0)
        await submit(us, "bulk", 9)


async def test_low_work_that_is_reserved_counts_as_well(url: str) -> None:
    async with a_queue(url, queue_max_items=8) as us, reserve(us, 4, 0, Claim("bulk", low=True)):
        with expect_refusal("low"):
            async with reserve(us, 1, 0, Claim("another", low=True)):
                pass
        async with reserve(us, 0, 0, Claim("third")) as turned_low:
            turned_low.lower()
            with expect_refusal("low"):
                await turned_low.resize(1, 0)


async def test_owner_holds_three_quarters_of_the_bytes(url: str, ask) -> None:
    async with a_queue(url, queue_max_bytes=100_000) as us:
        await submit(us, "greedy", ballast=bytearray(40_000))
        await submit(us, "greedy", ballast=bytearray(30_000))
        with expect_refusal("client"):
            await ask(us, "greedy", ballast=bytearray(10_000))
        await ask(us, "modest", ballast=bytearray(10_000))


async def test_work_is_shared_once_a_minute_of_it_is_unfinished(url: str, ask) -> None:
    async with a_queue(url) as us:
        await submit(us, "greedy", work_ms=MINUTE)
        await submit(us, "greedy", work_ms=MINUTE)  # there is no other owner
        await submit(us, "modest", work_ms=10)
        with expect_refusal("client-work", wait_s=61):  # until only a minute is left
            await ask(us, "greedy", work_ms=10)
        await ask(us, "modest", work_ms=MINUTE)
        await submit(us, "another", work_ms=MINUTE)
        await ask(us, "greedy", work_ms=0)  # half of it
        with expect_refusal("client-work"):
            await ask(us, "greedy", work_ms=1000)


async def test_first_long_job_of_owner_is_not_blocked_by_shorter_ones(url: str, ask) -> None:
    async with a_queue(url) as us:
        await submit(us, "greedy", work_ms=MINUTE + 1000)
        await ask(us, "modest", work_ms=3 * MINUTE)
        with expect_refusal("client-work"):
            await ask(us, "modest", work_ms=MINUTE)


async def test_work_below_a_minute_is_not_shared(url: str, ask) -> None:
    async with a_queue(url) as us:
        await submit(us, "modest", work_ms=10)
        await submit(us, "greedy", work_ms=MINUTE - 10)
        await ask(us, "greedy", work_ms=MINUTE)


async def test_last_eighth_is_for_one_pass_and_half_for_one_owner(url: str, ask) -> None:
    async with a_queue(url, queue_max_items=64) as us:
        await submit(us, "first", 30, takes_long=True)
        await submit(us, "second", 26, takes_long=True)
        with expect_refusal("long"):
            await ask(us, "third", takes_long=True)
        await ask(us, "third", 4)
        with expect_refusal("client-last"):
            await ask(us, "third")
        await ask(us, "fourth", 4)
        with expect_refusal("full"):
            await ask(us, "fifth")


async def test_long_work_is_refused_before_its_body_is_read(url: str) -> None:
    async with a_queue(url, queue_max_items=64) as us:
        await submit(us, "first", 30)
        await submit(us, "second", 26)
        await us.queues()
        long, short = Claim("third", takes_long=True), Claim("third")
        with expect_refusal("long"):
            await us.reservations.reserve(long).resize(1, 1)
        async with reserve(us, 4, 1, short):
            pass
        with expect_refusal("client-last"):
            await us.reservations.reserve(short).resize(5, 1)


async def test_reservations_count_for_their_owner(url: str) -> None:
    async with a_queue(url, queue_max_items=16) as us:
        async with reserve(us, 12, 1, Claim("greedy")):
            with expect_refusal("client"):
                await us.reservations.reserve(Claim("greedy")).resize(1, 1)
            async with reserve(us, 1, 1, Claim("modest")):
                pass
        async with reserve(us, 12, 1, Claim("greedy")):
            pass


async def test_retry_after_counts_steps_until_bound_is_free(url: str, ask) -> None:
    async with a_queue(url, queue_max_items=8) as us:
        await submit(us, "greedy", 6, work_ms=10 * MINUTE)
        with expect_refusal("client", wait_s=600):  # one of six that take an hour
            await ask(us, "greedy")


async def test_clients_without_an_owner_have_no_share(url: str) -> None:
    """Prove that clients that cannot be distinguished, as behind a Unix socket, do not share one bound."""
    async with a_queue(url, queue_max_items=16) as us:
        await submit(us, "", 16)
        with expect_refusal("full"):
            await submit(us, "")


async def test_job_key_has_owner_work_and_bytes(url: str, db: redis.Redis) -> None:
    async with a_queue(url) as us:
        request = await submit(us, "someone", work_ms=1234)
        [job] = db.scan_iter("job:*")
        stream, entry, owner, work_ms, nbytes, _ = db.get(job).split()
        assert (stream, owner, work_ms) == (STREAM, "someone", "1234")
        assert db.xrange(STREAM, entry, entry)[0][1]["bytes"] == nbytes
        request.cancel()
        await eventually_async(lambda: not db.exists(job, "queue:jobs", "queue:owners"))
        assert db.get("queue:work") == "0"


async def test_lost_recorded_job_counts_once_when_requeued(url: str, db: redis.Redis, worker: WorkerQueue) -> None:
    async with a_queue(url) as us:
        lost = await record(us, "someone", work_ms=1234)
        before = db.hgetall("queue:owners")
        db.delete(STREAM, f"job:{lost}-0")
        await eventually_async(lambda: db.exists(f"job:{lost}-0"))
        assert db.hgetall("queue:owners") == before
        [delivery] = await pull_one(worker)
        worker.acks.finish([(delivery, echo(worker, delivery))])
        assert nothing_is_left(db)


async def test_the_janitor_counts_again(url: str, db: redis.Redis, worker: WorkerQueue) -> None:
    async with a_queue(url) as us:
        await submit(us, "someone", 2, work_ms=100)
        right = db.hgetall("queue:owners")
        db.hset("queue:owners", mapping={"someone": "9 9 9 9 9", "no-one": "1 1 1 0 0"})
        db.incrby("queue:work", 5)
        db.sadd("queue:jobs", "gone")
        assert worker.janitor()
        assert (db.hgetall("queue:owners"), db.get("queue:work"), db.scard("queue:jobs")) == (right, "200", 2)


def serving_worker(worker: str, items_per_second: float, steps_per_second: float = 0.0) -> WorkerInfo:
    name, version = BUNDLE.split("@")
    bundle = ServedBundle(
        name=name,
        version=version,
        task="inpaint",
        digest=DIGEST,
        state="ready",
        items_per_second=items_per_second,
        steps_per_second=steps_per_second,
    )
    return WorkerInfo(id=worker, host="test", pid=0, state="ready", device="cpu", bundles=[bundle])


async def test_work_is_steps_over_what_the_workers_announce_together(url: str, worker: WorkerQueue) -> None:
    async with gateway(url) as us:

        async def work_ms(steps: int | None, *, takes_long: bool = True) -> int:
            await us.fleet.read(fresh=True)
            return us.fleet.latest.work_ms(BUNDLE, steps, takes_long=takes_long)

        assert await work_ms(500 * 8) == 500 * 8 * PASS_MS
        assert await work_ms(None) == LONG_JOB_MS
        assert await work_ms(None, takes_long=False) == PASS_MS
        worker.announce(serving_worker(worker.id, items_per_second=0.5, steps_per_second=50.0))
        other = worker_queue(url, "other")
        other.announce(serving_worker(other.id, items_per_second=0.5, steps_per_second=50.0))
        assert await work_ms(500 * 8) == 40_000
        assert await work_ms(None) == 1000
        other.close()


async def test_unexpectedly_long_work_has_no_place_in_last_eighth(url: str) -> None:
    """Prove it for a request whose parts show that it takes long after its reservation has grown."""
    unused: Any = None
    async with a_queue(url, queue_max_items=64) as us:
        await submit(us, "first", 28)
        await submit(us, "second", 27)
        await us.queues()
        for places, is_full in ((1, False), (2, True)):
            async with reserve(us, places, 1, Claim("third")) as place:
                context = RequestContext(unused, unused, "id", "third", ANONYMOUS_KEY, "job", "rest", False, unused, place)
                with expect_refusal("long") if is_full else nullcontext():
                    await Admission(unused, us.reservations, unused, unused).mark_long_running(context)


async def test_an_api_key_has_no_more_items_than_its_line_allows(url: str, ask) -> None:
    """Prove it for two gateways that do not know what the other has admitted."""
    async with a_queue(url) as us, a_queue(url) as them:
        await ask(us, "alice", 2, max_items=3)
        with expect_refusal("key"):
            await ask(them, "alice", 2, max_items=3)
        await ask(them, "alice", 1, max_items=3)
        await ask(them, "bob", 3, max_items=3)
        await ask(us, "alice", 5)  # a line without it
        with expect_refusal("key-never"):
            await ask(us, "alice", 4, max_items=3)
