"""A bound on what clients hold: a client that wants much waits behind its own work."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from server.concurrency import ClientBound


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Visitors:
    """Whoever holds something, in the order in which they came to it."""

    def __init__(self, bound: ClientBound) -> None:
        self._bound = bound
        self.order: list[str] = []
        self._tasks: list[tuple[asyncio.Task[None], asyncio.Event]] = []

    async def comes(self, client: str, amount: int = 1) -> None:
        may_end = asyncio.Event()
        self._tasks.append((asyncio.create_task(self._hold(client, amount, may_end)), may_end))
        await settled()

    async def ends(self, number: int) -> None:
        """The one that came as this one, from 0."""
        self._tasks[number][1].set()
        await settled()

    async def leaves(self, number: int) -> None:
        self._tasks[number][0].cancel()
        with suppress(asyncio.CancelledError):
            await self._tasks[number][0]
        await settled()

    async def _hold(self, client: str, amount: int, may_end: asyncio.Event) -> None:
        await self._bound.enter(client, amount)
        try:
            self.order.append(client)
            await may_end.wait()
        finally:
            self._bound.give(client, amount)


async def test_clients_take_turns_whoever_brings_more() -> None:
    visitors = Visitors(ClientBound(1, 1))
    for client in ("much", "much", "much", "little", "other"):
        await visitors.comes(client)
    for number in (0, 1, 3, 4, 2):
        await visitors.ends(number)
    assert visitors.order == ["much", "much", "little", "other", "much"]


async def test_a_client_holds_its_share_and_leaves_the_rest_to_others() -> None:
    visitors = Visitors(ClientBound(8, 2))
    for client in ("one", "one", "one", "two"):
        await visitors.comes(client)
    assert visitors.order == ["one", "one", "two"]
    await visitors.ends(0)
    assert visitors.order == ["one", "one", "two", "one"]


async def test_what_is_larger_than_all_is_held_alone_and_not_overtaken() -> None:
    visitors = Visitors(ClientBound(8, 2))
    for client, amount in (("one", 1), ("large", 9), ("two", 1)):
        await visitors.comes(client, amount)
    assert visitors.order == ["one"]
    await visitors.ends(0)
    assert visitors.order == ["one", "large"]
    await visitors.ends(1)
    assert visitors.order == ["one", "large", "two"]


async def test_who_leaves_holds_nothing_and_keeps_nobody_waiting() -> None:
    visitors = Visitors(ClientBound(2, 2))
    for client, amount in (("one", 1), ("large", 2), ("two", 1)):
        await visitors.comes(client, amount)
    await visitors.leaves(1)
    assert visitors.order == ["one", "two"]
    await visitors.leaves(0)
    await visitors.comes("three", 1)
    assert visitors.order == ["one", "two", "three"]


def test_over_names_the_bound() -> None:
    bound = ClientBound(4, 2)
    bound.take("one", 2)
    assert (bound.over("one", 1), bound.over("two", 2), bound.over("two", 3), bound.over("", 3)) == ("each", "", "each", "total")
    bound.take("", 1)
    assert (bound.amount("one"), bound.amount(), bound.greediest(), bound.over("two", 2)) == (2, 3, ("one", 2), "total")
    bound.give("one", 2)
    assert (bound.amount("one"), list(bound), bound.greediest()) == (0, [""], ("", 0))
