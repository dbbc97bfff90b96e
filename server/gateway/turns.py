"""Work in threads, in which clients take turns: who brings much waits behind their own work, and nobody else behind it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")
Work = tuple[Callable[[], Any], "asyncio.Future[Any]"]


class Turns:
    """For one event loop. At most `threads` calls run at once; of those that wait, each client's oldest goes in turn."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="prepare")
        self._free = threads
        self._waiting: dict[str, deque[Work]] = {}
        """What waits, by client; no queue is empty, and the client whose turn is next comes first."""

    async def run(self, client: str, work: Callable[[], T]) -> T:
        """The result of `work`. A caller that is cancelled before its turn leaves the line."""
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append((work, result))
        self._start()
        return await result

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> None:
        while self._free and self._waiting:
            client = next(iter(self._waiting))
            line = self._waiting.pop(client)
            work, result = line.popleft()
            if line:
                self._waiting[client] = line  # behind all others
            if result.done():
                continue
            self._free -= 1
            running = asyncio.get_running_loop().run_in_executor(self._pool, work)
            running.add_done_callback(partial(self._ended, result))

    def _ended(self, result: asyncio.Future[Any], ran: asyncio.Future[Any]) -> None:
        self._free += 1
        if not result.done() and not ran.cancelled():
            error = ran.exception()
            if error is None:
                result.set_result(ran.result())
            else:
                result.set_exception(error)
        self._start()
