"""Tasks that wait are ended from outside: by their time, or by a reason, which they raise."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from contextlib import suppress

import pytest

from server.concurrency import AsyncCancelScope, Deadline, TimerWheel


class Reason(Exception):
    pass


async def test_limit_ends_wait_when_due_and_not_before() -> None:
    started_at = time.monotonic()
    with pytest.raises(TimeoutError), Deadline(TimerWheel(), 0.1):
        await asyncio.sleep(60)
    assert time.monotonic() - started_at > 0.095


async def test_limit_can_be_moved_and_costs_nothing_after_block() -> None:
    ticks = TimerWheel()
    with Deadline(ticks, 0.01) as limit:
        limit.set(60)
        await asyncio.sleep(0.1)
    with Deadline(ticks, 0.01):
        pass
    await asyncio.sleep(0.1)


async def test_limits_of_an_hour_leave_few_timers_behind() -> None:
    ticks = TimerWheel()
    for _ in range(100):
        with Deadline(ticks, 3600):
            await asyncio.sleep(0.001)
    assert len(ticks) < 50


async def test_thousands_of_limits_end_each_its_own_task() -> None:
    ticks = TimerWheel()

    async def wait(number: int) -> str:
        try:
            with Deadline(ticks, 0.02 + number % 7 * 0.01 if number % 2 else 60):
                await asyncio.sleep(0.5)
        except TimeoutError:
            return "ended"
        return "slept"

    ends = await asyncio.gather(*(wait(number) for number in range(2000)))
    assert ends == ["ended" if number % 2 else "slept" for number in range(2000)]


async def test_reason_is_raised_at_the_wait_and_task_continues() -> None:
    with pytest.raises(Reason), AsyncCancelScope() as waiting:
        asyncio.get_running_loop().call_soon(waiting.end, Reason())
        await asyncio.sleep(60)
    await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None and not task.cancelling()


async def test_a_cancellation_from_elsewhere_stays_one() -> None:
    async def wait() -> None:
        with AsyncCancelScope() as waiting:
            asyncio.get_running_loop().call_soon(waiting.end, Reason())
            await asyncio.sleep(60)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises((asyncio.CancelledError, Reason)) as ended:
        await task
    assert ended.type is asyncio.CancelledError


async def test_nothing_reaches_a_task_whose_block_has_ended() -> None:
    with AsyncCancelScope() as waiting:
        pass
    waiting.end(Reason())
    await asyncio.sleep(0)


class Large:
    pass


async def test_ended_block_frees_memory_without_garbage_collection() -> None:
    references: list[weakref.ref[Large]] = []

    async def waits(waiting: AsyncCancelScope) -> None:
        large = Large()
        references.append(weakref.ref(large))
        with waiting:
            await asyncio.sleep(60)

    gc.disable()
    try:
        for waiting in (Deadline(TimerWheel(), 0.01), AsyncCancelScope()):
            task = asyncio.create_task(waits(waiting))
            await asyncio.sleep(0)
            waiting.end(Reason())
            with suppress(Reason):
                await task
            del task
            await asyncio.sleep(0)  # the loop lets go of what has woken this test
        assert [large() for large in references] == [None, None]
    finally:
        gc.enable()
