"""Rolling updates: jobs that an older worker does not understand wait for a newer one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import redis

from server.queue.connect import CHUNK_BYTES
from server.queue.gateway.dispatcher import Dispatcher
from server.queue.messages import WORKER_FORMS, QueuedJob, Reply
from tests.queue.test_records import admit, read
from tests.support.queue import (
    LASTING_WORKER,
    QUEUE,
    STREAM,
    WorkerQueue,
    a_job,
    announce,
    answer_of,
    echo,
    gateway,
    nothing_is_left,
    pull_one,
    until_deadline,
    worker_queue,
)
from tests.support.waiting import eventually_async

NEWS = "telepathy"


@pytest.fixture
def older(url: str) -> Iterator[WorkerQueue]:
    """Worker of this version, which is older than the jobs below."""
    queue = worker_queue(url, "older", LASTING_WORKER)
    announce(queue)
    yield queue
    queue.close()


@pytest.fixture
def newer(url: str) -> Iterator[WorkerQueue]:
    queue = worker_queue(url, "newer", LASTING_WORKER, f"{WORKER_FORMS} {NEWS}")
    announce(queue)
    yield queue
    queue.close()


async def a_newer_job(us: Dispatcher, value: int, **options: Any) -> QueuedJob:
    return msgspec.structs.replace(await a_job(us, value, **options), needs=NEWS)


def taken_by(db: redis.Redis, worker: WorkerQueue) -> int:
    """Return the number of jobs that a worker holds."""
    consumers = db.xinfo_consumers(STREAM, "workers")
    return sum(consumer["pending"] for consumer in consumers if consumer["name"] == worker.id)


async def take_nothing(db: redis.Redis, worker: WorkerQueue) -> None:
    """Pull the one job, and check that the worker holds it and runs nothing."""
    assert await pull_one(worker) == []
    assert taken_by(db, worker) == 1


@pytest.mark.parametrize("nbytes", [1, 2 * CHUNK_BYTES], ids=["small", "large"])
async def test_newer_job_is_returned_and_run_by_a_newer_worker(
    url: str, db: redis.Redis, older: WorkerQueue, newer: WorkerQueue, nbytes: int
) -> None:
    async with gateway(url) as us:
        request = asyncio.create_task(us.submitter.submit([await a_newer_job(us, 7, ballast=np.zeros(nbytes, np.uint8))]))
        await take_nothing(db, older)
        announce(older)
        [delivery] = await pull_one(newer)
        assert not delivery.alone
        newer.acks.finish([(delivery, echo(newer, delivery))])
        [reply] = await request
        assert (answer_of(reply), reply.worker) == (7, newer.id)
        assert nothing_is_left(db)


async def test_others_of_the_same_pull_are_run(url: str, older: WorkerQueue) -> None:
    async with gateway(url) as us:
        request = asyncio.create_task(us.submitter.submit([await a_newer_job(us, 1), await a_job(us, 2)]))
        [delivery] = await pull_one(older)
        assert int(delivery.job.arrays["x"].to_numpy()) == 2
        request.cancel()


async def test_older_worker_gets_a_newer_job_once_per_beat(url: str, db: redis.Redis, older: WorkerQueue) -> None:
    """Prove that it gets the job again with its next announcement, and waits at the queue until then."""
    async with gateway(url) as us:
        request = asyncio.create_task(us.submitter.submit([await a_newer_job(us, 1)]))
        await take_nothing(db, older)
        for _ in range(3):
            assert older.pull([QUEUE], 4) == []
            assert taken_by(db, older) == 1
        announce(older)
        assert taken_by(db, older) == 0
        request.cancel()


async def test_leaving_worker_returns_the_newer_job(url: str, db: redis.Redis, older: WorkerQueue, newer: WorkerQueue) -> None:
    async with gateway(url) as us:
        request = asyncio.create_task(us.submitter.submit([await a_newer_job(us, 7)]))
        await take_nothing(db, older)
        older.intake.return_to_queue([])
        older.withdraw()
        [delivery] = await pull_one(newer)
        assert not delivery.alone
        newer.acks.finish([(delivery, echo(newer, delivery))])
        assert [answer_of(reply) for reply in await request] == [7]


async def test_deadline_ends_a_job_that_no_worker_understands(url: str, db: redis.Redis, older: WorkerQueue) -> None:
    async with gateway(url) as us:
        request = asyncio.create_task(until_deadline(us, [await a_newer_job(us, 1, seconds=3.0)]))
        await take_nothing(db, older)
        with pytest.raises(TimeoutError):
            await request
        await eventually_async(lambda: all(db.exists(f"cancel:{key.partition(':')[2]}") for key in db.scan_iter("job:*")))
        announce(older)
        assert nothing_is_left(db)


async def test_a_job_that_outlives_its_gateway_waits_too(url: str, db: redis.Redis, older: WorkerQueue, newer: WorkerQueue) -> None:
    async with gateway(url) as us:
        record = await admit(us, 7, needs=NEWS)
        await take_nothing(db, older)
        announce(older)
        [delivery] = await pull_one(newer)
        newer.acks.finish([(delivery, echo(newer, delivery))])
        assert (await read(us, record)).state == "done"


async def test_one_that_cannot_be_read_at_all_fails_and_says_so(url: str, older: WorkerQueue) -> None:
    async with gateway(url) as us:
        record = await admit(us, 7, v=99)
        assert await pull_one(older) == []
        failed = await read(us, record)
        assert (failed.state, failed.failure and failed.failure.kind) == ("failed", "unknown-version")
        assert failed.failure is not None and "version 99" in failed.failure.detail


async def test_answers_of_newer_workers_may_have_unknown_fields(url: str, db: redis.Redis, older: WorkerQueue) -> None:
    """Prove that unknown fields are ignored."""

    class NewerReply(Reply, frozen=True, kw_only=True):
        mood: str = "good"

    async with gateway(url) as us:
        request = asyncio.create_task(us.submitter.submit([await a_job(us, 5)]))
        [delivery] = await pull_one(older)
        plain = echo(older, delivery)
        older.acks.finish([(delivery, NewerReply(id=plain.id, worker=plain.worker, arrays=plain.arrays))])
        assert [answer_of(reply) for reply in await request] == [5]
