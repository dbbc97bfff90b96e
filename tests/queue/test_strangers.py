"""Foreign entries in the same Redis cost no request its answer, and end no process."""

from __future__ import annotations

import asyncio

import pytest
import redis

from server.queue import keys
from tests.support.queue import BUNDLE, QUEUE, QUICK_WORKER, STREAM, Consumer, WorkerQueue, a_job, ask, gateway, worker_queue
from tests.support.waiting import eventually_async

LATE = "99999999999999"
ENTRIES = [
    {"id": b"\xff\xfe", "until": LATE, "bytes": "1", "job": "x"},
    {"id": "a", "until": LATE, "bytes": "1", "job": "x", "gw": b"\xff"},
    {"id": "a", "until": LATE, "bytes": "abc", "job": "x"},
    {"id": "a", "until": LATE, "bytes": "inf", "job": "x"},
    {"id": "a", "until": LATE, "bytes": "1", "at": "abc", "job": "x"},
    {"id": "a", "until": "1e300", "bytes": "9" * 400, "at": "9" * 400, "job": "x"},
    {"id": "a", "until": LATE, "job": ""},
]


@pytest.mark.parametrize("entry", ENTRIES, ids=range(len(ENTRIES)))
async def test_a_foreign_entry_of_a_work_stream_is_thrown_away(
    url: str, db: redis.Redis, worker: WorkerQueue, entry: dict[str, str]
) -> None:
    async with gateway(url) as us:
        live = {"gw": us.id, **entry}
        db.xadd(STREAM, live)
        db.sadd(keys.QUEUES, STREAM)
        ours = asyncio.create_task(us.submitter.submit([await a_job(us, 7)]))
        taken = []
        await eventually_async(lambda: taken.extend(worker.pull([QUEUE], 8)) or taken)
        assert [delivery.job.bundle for delivery in taken] == [BUNDLE]
        await eventually_async(lambda: db.xlen(STREAM) == 1)
        ours.cancel()


@pytest.mark.parametrize("entry", ENTRIES, ids=range(len(ENTRIES)))
async def test_foreign_entry_of_a_dead_worker_is_thrown_away(url: str, db: redis.Redis, worker: WorkerQueue, entry: dict[str, str]) -> None:
    async with gateway(url) as us:
        db.xgroup_create(STREAM, keys.GROUP, "0", mkstream=True)
        db.xadd(STREAM, {"gw": us.id, **entry})
        db.sadd(keys.QUEUES, STREAM)
        db.xreadgroup(keys.GROUP, "dead", {STREAM: ">"})
        assert worker.intake.reclaim([QUEUE]) is None
        assert db.xlen(STREAM) == 0


@pytest.mark.parametrize("entry", [{"id": "x"}, {b"\xff": "x"}, {"id": b"\xff", "reply": "x"}], ids=range(3))
async def test_a_foreign_entry_among_the_replies_is_passed_over(url: str, db: redis.Redis, entry: dict[str, str]) -> None:
    async with gateway(url) as us, Consumer(url):
        db.xadd(keys.replies(us.id), entry)
        assert await ask(us, 3) == 3
        assert await ask(us, 4) == 4


@pytest.mark.parametrize("name", ["foo", "queue:a:b:c", b"\xff"])
async def test_foreign_name_in_queue_set_blocks_no_gateway(url: str, db: redis.Redis, name: str) -> None:
    db.sadd(keys.QUEUES, name)
    async with gateway(url) as us, Consumer(url):
        assert await ask(us, 5) == 5
        assert all(queue.bundle == BUNDLE for queue in await us.queues())


async def test_an_absurd_revision_of_the_repository_reads_as_none(url: str, db: redis.Redis) -> None:
    db.set("repository:revision", "9" * 5000)
    queue = worker_queue(url, "reader", QUICK_WORKER)
    assert queue.repository()[1] == 0
    queue.close()
