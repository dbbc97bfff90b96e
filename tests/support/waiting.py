"""Waiting until a condition holds, with a failure that names it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

WAIT_S = 60.0
"""Timeout in seconds for what comes as soon as the machine has time for it."""
START_S = 240.0
"""Timeout in seconds for a process that imports its libraries, or a worker that loads its models before."""
AGAIN_S = 0.02
SELDOM_S = 0.1
"""Interval in seconds between two checks of what takes seconds: a check may cost 10 ms of CPU."""
T = TypeVar("T")


def eventually(condition: Callable[[], T], kind: str = "the condition holds", seconds: float = WAIT_S) -> T:
    """Wait until the condition holds, and return what it answered then; fail naming it."""
    started_at = time.monotonic()
    while not (answer := condition()):
        time.sleep(_pause(time.monotonic() - started_at, kind, seconds))
    return answer


async def eventually_async(condition: Callable[[], T | Awaitable[T]], kind: str = "the condition holds", seconds: float = WAIT_S) -> T:
    """Wait in the same way while the event loop runs; the condition may be a coroutine function."""
    started_at = time.monotonic()
    while not (answer := await _answer(condition)):
        await asyncio.sleep(_pause(time.monotonic() - started_at, kind, seconds))
    return answer


def _pause(waited: float, kind: str, seconds: float) -> float:
    """Seconds until the next look."""
    assert waited < seconds, f"it never came to this: {kind}"
    return min(max(AGAIN_S, waited / 10), SELDOM_S)


async def _answer(condition: Callable[[], T | Awaitable[T]]) -> T:
    answer = condition()
    return await answer if isinstance(answer, Awaitable) else answer
