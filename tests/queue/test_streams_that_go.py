"""Work streams that are removed under a worker's hands: by a janitor that finds them empty, by FLUSHALL, by hand."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress

import redis

from server.queue import keys
from server.queue.connect import RedisUnavailable
from tests.support.queue import QUEUE, Consumer, WorkerQueue, announce, ask, gateway, pull_one, redis_at


def test_worker_survives_vanished_streams(url: str, db: redis.Redis, worker: WorkerQueue) -> None:
    ended = threading.Event()

    def remove() -> None:
        with redis_at(url) as other:
            while not ended.is_set():
                other.delete(*keys.streams(QUEUE))

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            with suppress(RedisUnavailable):
                assert worker.pull([QUEUE], 8, block_ms=20) == []
    finally:
        ended.set()
        remover.join()


async def test_worker_hands_back_deliveries_lost_by_redis(url: str, db: redis.Redis, worker: WorkerQueue) -> None:
    async with gateway(url) as us:
        announce(worker)
        request = asyncio.create_task(ask(us, 7))
        lost = await pull_one(worker)
        db.flushall()
        worker.intake.return_to_queue(lost)
        async with Consumer(url):
            assert await request == 7
