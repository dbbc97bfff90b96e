"""Connections to Redis, and a worker's end of the queue in the process of the test.

`OPSIN_TEST_REDIS` chooses the Redis: `cell` permits only the keys of the cell and the service, `cluster` is a Valkey in
cluster mode, one node with all slots; an empty value is a usual one. `test_cells.py` runs the tests of this folder in all of them.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from server.queue.gateway.dispatcher import Dispatcher
from server.supervisor.private_valkey import PrivateValkey
from tests.support import forked_program
from tests.support.queue import QUICK_WORKER, Server, WorkerQueue, gateway, redis_at, worker_queue
from tests.support.redis import KEYSPACE
from tests.support.waiting import eventually

KIND = os.environ.get("OPSIN_TEST_REDIS", "")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the only node."""
    server = Server(tmp_path_factory.mktemp("cluster"), "--save", "", "--cluster-enabled", "yes")
    with redis.Redis(port=server.port, decode_responses=True) as node:
        node.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        eventually(lambda: node.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
    yield server.url
    server.kill()


@pytest.fixture
def url(url: str, request: pytest.FixtureRequest) -> str:
    """The URL of an empty Redis of the chosen kind."""
    forked_program.prepare()  # for consumers, before an event loop waits for it
    if KIND == "cluster":
        node: str = request.getfixturevalue("cluster")
        with redis.Redis.from_url(node) as client:
            client.flushall()
        return node
    if KIND == "cell":
        keys = [f"~{KEYSPACE.name('*')}", f"~{KEYSPACE.service('*')}"]
        with redis.Redis.from_url(url) as client:
            client.execute_command("ACL SETUSER", "cell", "reset", "on", ">secret", "+@all", *keys)
        return url.replace("unix://", "unix://cell:secret@")
    return url


@pytest.fixture
def admin_db(valkey: PrivateValkey, url: str) -> Iterator[redis.Redis]:
    """Connection of a user of the same Redis who may use all keys."""
    with redis.Redis.from_url(url if KIND == "cluster" else valkey.url) as client:
        yield client


@pytest.fixture
def db(url: str) -> Iterator[redis.Redis]:
    """Connection that decodes answers to text, which damages messages. To write an entry again, read it by `redis_at(url)`."""
    with redis_at(url, decode_responses=True, encoding_errors="replace") as client:
        yield client


@pytest.fixture
def worker(url: str) -> Iterator[WorkerQueue]:
    queue = worker_queue(url, "worker-under-test", QUICK_WORKER)
    yield queue
    queue.close()


@pytest.fixture
async def us(url: str) -> AsyncIterator[Dispatcher]:
    async with gateway(url) as dispatcher:
        yield dispatcher
