"""Connections that carry the commands of every request, also after the server closes them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
import redis

from server.queue.connect import connect, connect_async
from server.queue.gateway.connection import RespPool
from server.queue.worker.connection import WorkerRedisLink, WorkerTimings
from tests.support.redis import KEYSPACE
from tests.support.waiting import eventually_async


@pytest.fixture
async def wire(url: str) -> AsyncIterator[RespPool]:
    client = connect_async(url)
    wire = RespPool(client, KEYSPACE)
    yield wire
    await wire.close()
    await client.aclose()


async def test_a_connection_that_was_closed_while_idle_is_replaced(url: str, wire: RespPool) -> None:
    """Prove it for connections that Redis' `timeout` or a proxy closed."""
    with connect(url) as operator:
        ids = await asyncio.gather(*(wire.command("CLIENT", "ID") for _ in range(3)))
        for client in ids:
            operator.client_kill_filter(_id=str(client))
        await eventually_async(lambda: not {int(one["id"]) for one in operator.client_list()} & set(ids))
    async with connect_async(url) as other:
        await other.ping()  # the loop has noticed everything that happened before
    for _ in range(4):
        assert await wire.command("PING") == b"PONG"


async def test_an_answer_that_is_an_error_costs_no_connection(wire: RespPool) -> None:
    client_id = await wire.command("CLIENT", "ID")
    with pytest.raises(redis.exceptions.ResponseError, match="unknown command"):
        await wire.command("NOSUCH")
    assert await wire.command("CLIENT", "ID") == client_id


@pytest.mark.parametrize("length", [0, 1, 5_000, 16_384, 16_385, 200_000])
async def test_words_of_any_length_and_type_arrive_as_they_were_sent(url: str, wire: RespPool, length: int) -> None:
    large, words = bytes(range(256)) * (length // 256 + 1), ("text ü", 17, -2.5, b"\r\n")
    script = "return {ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]}"
    arrived = ["text ü".encode(), b"17", b"-2.5", b"\r\n", large[:length]]
    assert await wire.command("EVAL", script, 0, *words, large[:length]) == arrived
    assert await wire.command("EVAL", script, 0, *words, memoryview(large)[:length]) == arrived
    blocking = WorkerRedisLink(url, KEYSPACE, WorkerTimings())
    assert blocking.command("EVAL", script, 0, *words, large[:length]) == arrived
    blocking.close()


def test_a_connection_that_redis_refuses_leaves_nothing_behind(url: str) -> None:
    link = WorkerRedisLink(f"{url}?db=99" if url.startswith("unix") else re.sub(r"/0$", "/99", url), KEYSPACE, WorkerTimings())
    for _ in range(3):
        with pytest.raises(redis.exceptions.ResponseError, match="index"):
            link.command("PING")
    assert not link._open
    link.close()
