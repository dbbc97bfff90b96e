"""A bound on what clients hold: a client that wants much waits behind its own work."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from server.concurrency import ClientBound


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Callers:
    """Callers of a bound; `order` lists those that it let in."""

    def __init__(self, bound: ClientBound) -> None:
        self._bound = bound
        self.order: list[str] = []
        self._tasks: list[tuple[asyncio.Task[None], asyncio.Event]] = []

    async def enter(self, client: str, amount: int = 1) -> None:
        may_end = asyncio.Event()
        self._tasks.append((asyncio.create_task(self._hold(client, amount, may_end)), may_end))
        await settle()

    async def finish(self, number: int) -> None:
        """End the call of the caller with this number, from 0."""
        self._tasks[number][1].set()
        await settle()

    async def cancel(self, number: int) -> None:
        self._tasks[number][0].cancel()
        with suppress(asyncio.CancelledError):
            await self._tasks[number][0]
        await settle()

    async def _hold(self, client: str, amount: int, may_end: asyncio.Event) -> None:
        await self._bound.enter(client, amount)
        try:
            self.order.append(client)
            await may_end.wait()
        finally:
            self._bound.give(client, amount)


async def test_clients_take_turns_however_much_each_brings() -> None:
    callers = Callers(ClientBound(1, 1))
    for client in ("much", "much", "much", "little", "other"):
        await callers.enter(client)
    for number in (0, 1, 3, 4, 2):
        await callers.finish(number)
    assert callers.order == ["much", "much", "little", "other", "much"]


async def test_a_client_holds_its_share_and_leaves_the_rest_to_others() -> None:
    callers = Callers(ClientBound(8, 2))
    for client in ("one", "one", "one", "two"):
        await callers.enter(client)
    assert callers.order == ["one", "one", "two"]
    await callers.finish(0)
    assert callers.order == ["one", "one", "two", "one"]


async def test_what_is_larger_than_all_is_held_alone_and_not_overtaken() -> None:
    callers = Callers(ClientBound(8, 2))
    for client, amount in (("one", 1), ("large", 9), ("two", 1)):
        await callers.enter(client, amount)
    assert callers.order == ["one"]
    await callers.finish(0)
    assert callers.order == ["one", "large"]
    await callers.finish(1)
    assert callers.order == ["one", "large", "two"]


async def test_a_caller_that_leaves_holds_nothing_and_blocks_no_other() -> None:
    callers = Callers(ClientBound(2, 2))
    for client, amount in (("one", 1), ("large", 2), ("two", 1)):
        await callers.enter(client, amount)
    await callers.cancel(1)
    assert callers.order == ["one", "two"]
    await callers.cancel(0)
    await callers.enter("three", 1)
    assert callers.order == ["one", "two", "three"]


def test_the_exceeded_bound_is_named() -> None:
    bound = ClientBound(4, 2)
    bound.take("one", 2)
    amounts = (("one", 1), ("two", 2), ("two", 3), ("", 3))
    assert [bound.exceeded_bound(client, amount) for client, amount in amounts] == ["each", "", "each", "total"]
    bound.take("", 1)
    assert (bound.amount("one"), bound.amount(), bound.greediest(), bound.exceeded_bound("two", 2)) == (2, 3, ("one", 2), "total")
    bound.give("one", 2)
    assert (bound.amount("one"), list(bound), bound.greediest()) == (0, [""], ("", 0))
