"""Somebody else's data under a name of ours is set aside, and the service goes on."""

from __future__ import annotations

import logging

import pytest
import redis

from server.queue.errors import RedisAway
from server.queue.worker_side import WorkerQueue
from tests.queue.harness import BUNDLE, QUEUE, STREAM, Consumer, ask, eventually, gateway

NEEDED = ("queues", "workers", "gateways", "records:open", "stats:uncounted", STREAM, f"stats:{BUNDLE}")
"""By requests, or by the signs of life of gateways and workers."""


@pytest.mark.parametrize("name", NEEDED)
async def test_requests_are_answered_although_others_took_a_name_of_ours(url: str, db: redis.Redis, name: str) -> None:
    async with gateway(url, redis_grace=60) as us, Consumer(url):
        assert await ask(us, 1) == 1
        db.delete(name)
        db.set(name, "somebody else's")
        assert [await ask(us, number) for number in range(2, 5)] == [2, 3, 4]

        async def is_aside() -> bool:
            return [db.get(aside) for aside in db.keys(f"set-aside:{name}:*")] == ["somebody else's"]

        await eventually(is_aside)
        assert await ask(us, 5) == 5


async def test_the_log_says_what_lay_in_the_way_and_where_it_is_now(url: str, db: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    async with gateway(url, redis_grace=60) as us, Consumer(url):
        assert await ask(us, 1) == 1
        db.delete("queues")
        db.set("queues", "somebody else's")
        with caplog.at_level(logging.ERROR):
            assert await ask(us, 2) == 2
        [aside] = db.keys("set-aside:queues:*")
        assert f"under queues, a name of this service: it is now under {aside}" in caplog.text


@pytest.mark.parametrize("waits", [0, 50], ids=["looking", "waiting"])
def test_a_worker_goes_on_where_a_name_is_taken_while_it_looks_for_work(db: redis.Redis, worker: WorkerQueue, waits: int) -> None:
    worker.pull([QUEUE], 1)  # from an empty look on it waits at once, by another command
    db.set(STREAM, "somebody else's")
    with pytest.raises(RedisAway):
        worker.pull([QUEUE], 1, waits)
    assert worker.pull([QUEUE], 1, waits) == []
    assert db.keys(f"set-aside:{STREAM}:*")
