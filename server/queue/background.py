"""Tasks of one event loop that end with their owner."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

PAUSE_S = 0.1


class Background:
    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def undisturbed(self, work: Coroutine[Any, Any, T]) -> T:
        """A caller that is cancelled or out of time leaves at once; the command ends by itself.

        Cancelling redis-py in mid-command costs a connection and, under Python 3.11, may swallow the cancellation."""
        task = self.spawn(work)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to look at it
        return await asyncio.shield(task)

    async def close(self) -> None:
        while self._tasks:  # Python 3.11's wait_for, which redis-py uses, may swallow a cancellation
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=PAUSE_S)
