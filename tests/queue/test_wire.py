"""Connections that carry the commands of every request: what becomes of them when the server ends them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis

from server.queue.connect import connect, connect_async
from server.queue.wire import AsyncWire
from tests.queue.harness import eventually


@pytest.fixture
async def wire(url: str) -> AsyncIterator[AsyncWire]:
    client = connect_async(url)
    wire = AsyncWire(client)
    yield wire
    await wire.close()
    await client.aclose()


async def test_a_connection_that_was_closed_while_idle_is_replaced(url: str, wire: AsyncWire) -> None:
    """As by Redis' own `timeout`, or by what stands between."""
    with connect(url) as operator:
        here = await asyncio.gather(*(wire.command("CLIENT", "ID") for _ in range(3)))
        for client in here:
            operator.client_kill_filter(_id=str(client))
        await eventually(lambda: not {int(one["id"]) for one in operator.client_list()} & set(here))
    async with connect_async(url) as other:
        await other.ping()  # the loop has heard of everything that happened before
    for _ in range(4):
        assert await wire.command("PING") == b"PONG"


async def test_an_answer_that_is_an_error_costs_no_connection(wire: AsyncWire) -> None:
    here = await wire.command("CLIENT", "ID")
    with pytest.raises(redis.exceptions.ResponseError, match="unknown command"):
        await wire.command("NOSUCH")
    assert await wire.command("CLIENT", "ID") == here
