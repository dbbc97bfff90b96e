"""A look into Redis, and a worker's end of the queue inside the test's own process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from server.queue.worker_side import WorkerQueue
from tests.queue.harness import QUICK_WORKER


@pytest.fixture
def db(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url, decode_responses=True, encoding_errors="replace") as client:
        yield client


@pytest.fixture
def worker(url: str) -> Iterator[WorkerQueue]:
    queue = WorkerQueue(url, "worker-under-test", QUICK_WORKER)
    yield queue
    queue.close()
