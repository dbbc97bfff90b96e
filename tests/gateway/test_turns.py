"""A client with much work waits behind its own, and others do not wait behind it."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import pytest

from models.processes.confined_process import ConfinedProcess
from server.gateway.fair_executor import BodyExecutor, FairExecutor
from tests.support.waiting import eventually_async


@pytest.fixture
def turns() -> Iterator[FairExecutor]:
    """An executor with one thread for a client, and two in all."""
    one = FairExecutor(1)
    yield one
    one.close()


async def test_clients_take_turns_however_much_each_brings(turns: FairExecutor) -> None:
    order: list[str] = []
    gate = threading.Event()
    ended = threading.Event()
    first = asyncio.create_task(turns.run("greedy", gate.wait))
    busy = asyncio.create_task(turns.run("busy", ended.wait))  # one thread is left: what begins first ends first
    await asyncio.sleep(0)
    greedy = [asyncio.create_task(turns.run("greedy", lambda: order.append("greedy"))) for _ in range(8)]
    await asyncio.sleep(0)
    modest = [asyncio.create_task(turns.run(name, lambda name=name: order.append(name))) for name in ("modest", "other")]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(first, *greedy, *modest)
    ended.set()
    await busy
    assert order[:4] == ["greedy", "modest", "other", "greedy"]
    assert len(order) == 10


async def test_a_client_whose_work_takes_long_leaves_threads_to_others(turns: FairExecutor) -> None:
    gate = threading.Event()
    long = [asyncio.create_task(turns.run("greedy", gate.wait)) for _ in range(3)]
    await asyncio.sleep(0)
    try:
        assert await asyncio.wait_for(turns.run("modest", lambda: 3), 30) == 3
    finally:
        gate.set()
    await asyncio.gather(*long)


async def test_work_that_is_no_longer_waited_for_is_not_done(turns: FairExecutor) -> None:
    done: list[int] = []
    gate = threading.Event()
    first = asyncio.create_task(turns.run("a", gate.wait))
    await asyncio.sleep(0)
    gone = asyncio.create_task(turns.run("a", lambda: done.append(1)))
    stays = asyncio.create_task(turns.run("a", lambda: done.append(2)))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(first, stays)
    assert done == [2]


async def test_who_left_the_line_keeps_nothing_in_memory(turns: FairExecutor) -> None:
    class Body:
        def read(self) -> None:
            raise AssertionError("it is not read any more")

    gate, body = threading.Event(), Body()
    reference = weakref.ref(body)
    first = asyncio.create_task(turns.run("a", gate.wait))
    await asyncio.sleep(0)
    gone = asyncio.create_task(turns.run("a", body.read))
    await asyncio.sleep(0)
    gone.cancel()
    del body
    with suppress(asyncio.CancelledError):
        await gone
    del gone
    try:
        assert reference() is None
    finally:
        gate.set()
        await first


async def test_errors_go_to_the_caller_that_waits(turns: FairExecutor) -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await turns.run("a", fail)
    assert await turns.run("a", lambda: 3) == 3


async def test_program_with_abandoned_answer_frees_its_thread(turns: FairExecutor) -> None:
    """The thread would wait for it as long as the kind of work allows, minutes for some."""
    started = threading.Event()

    def work() -> None:
        with ConfinedProcess("tests.support.child_programs silent", b"", {}, patience=90) as program:
            started.set()
            program.message()

    abandoned = asyncio.create_task(turns.run("a", work))
    await asyncio.to_thread(started.wait)
    abandoned.cancel()
    assert await asyncio.wait_for(turns.run("a", lambda: 3), 60) == 3


async def test_a_body_of_ordinary_size_waits_for_no_large_one() -> None:
    bodies, go_on = BodyExecutor(), threading.Event()
    try:
        large = [asyncio.create_task(bodies.run(client, 40_000_000, go_on.wait)) for client in ("one", "one", "two")]
        assert await bodies.run("three", 160_000, lambda: "read") == "read"
        assert not any(task.done() for task in large)
    finally:
        go_on.set()
    assert await asyncio.gather(*large) == [True] * 3
    bodies.close()


async def test_large_bodies_are_parsed_one_at_a_time_by_client_in_turn() -> None:
    bodies, order, running = BodyExecutor(), list[str](), Counter[str]()

    def read(client: str) -> int:
        running["now"] += 1
        order.append(client)
        running_counts = running["now"]
        running["now"] -= 1
        return running_counts

    clients = ["much", "much", "much", "little"]
    running_counts = await asyncio.gather(*(bodies.run(client, 2_000_000, partial(read, client)) for client in clients))
    bodies.close()
    assert running_counts == [1] * 4 and order == ["much", "much", "little", "much"]


async def test_what_was_refused_is_forgotten_at_once(turns: FairExecutor) -> None:
    """Memory of a body is freed without a garbage collection."""

    class Body:
        def refuse(self) -> None:
            raise ValueError("no base64")

    body = Body()
    reference = weakref.ref(body)
    gc.disable()
    try:
        with suppress(ValueError):
            await turns.run("one", body.refuse)
        del body
        await eventually_async(lambda: reference() is None, "the body is gone")
    finally:
        gc.enable()
