"""Long work runs in few threads of low priority, so that others have the CPUs."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from server.gateway import fair_executor as turns_module
from server.gateway.fair_executor import FairExecutor, HeavyClients
from server.processes.os_process import LOW_PRIORITY_NICE


@pytest.fixture
def heavy(monkeypatch: pytest.MonkeyPatch) -> HeavyClients:
    monkeypatch.setattr(turns_module, "LONG_CALL_CPU_S", 0.1)
    return HeavyClients()


@pytest.fixture
def turns(heavy: HeavyClients) -> Iterator[FairExecutor]:
    turns = FairExecutor(2, heavy=heavy)
    yield turns
    turns.close()


def busy(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


async def test_only_client_with_long_work_gets_low_priority_threads(turns: FairExecutor) -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    assert await turns.run("much", priority) == before
    await turns.run("much", lambda: busy(0.15))
    await turns.run("little", lambda: busy(0.02))
    assert await turns.run("much", priority) == before + LOW_PRIORITY_NICE
    assert await turns.run("little", priority) == before
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


async def test_long_call_goes_low_priority_and_thread_is_not_reused(turns: FairExecutor) -> None:
    before, long, thread = os.getpriority(os.PRIO_PROCESS, 0), list[int](), list[int]()

    def work() -> None:
        thread.append(threading.get_native_id())
        until = time.monotonic() + 30
        while priority() == before and time.monotonic() < until:
            pass
        long.append(priority())

    await turns.run("much", work)
    assert long == [before + LOW_PRIORITY_NICE]
    assert [await turns.run(f"little {number}", priority) for number in range(8)] == [before] * 8


async def test_waiting_is_no_work(turns: FairExecutor, heavy: HeavyClients) -> None:
    """A client that waits for a CPU, or for memory that others hold, has not used a CPU."""
    await turns.run("much", lambda: time.sleep(0.3))
    assert "much" not in heavy


def test_a_client_is_heavy_until_it_had_no_long_work_for_a_while(heavy: HeavyClients, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    heavy.add("much", 2.0)
    heavy.add("much", 0.5)
    now += 2.0 * turns_module.HEAVY_S_PER_CPU_S - 1
    assert "much" in heavy
    now += 2
    assert "much" not in heavy


async def test_long_work_has_half_of_threads_and_others_pass_it(turns: FairExecutor, heavy: HeavyClients) -> None:
    started, begun, gate = list[str](), threading.Event(), threading.Event()
    for client in ("a", "b", "c"):
        heavy.add(client, turns_module.MAX_HEAVY_S)

    def long(client: str) -> None:
        started.append(client)
        begun.set()
        gate.wait()

    work = [asyncio.create_task(turns.run(client, partial(long, client))) for client in ("a", "b", "c")]
    assert await asyncio.to_thread(begun.wait, 30)
    assert await asyncio.wait_for(turns.run("little", lambda: 3), 30) == 3
    assert started == ["a"]
    gate.set()
    await asyncio.gather(*work)
    assert started == ["a", "b", "c"]
