"""Work in threads, in which clients take turns: who brings much waits behind their own work, and nobody else behind it."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from models.media.confined import Call

T = TypeVar("T")
Work = tuple[Callable[[], Any], "asyncio.Future[Any]"]


class Turns:
    """For one event loop. At most `threads` calls of one client run at once, and twice as many of all together; of those that wait, each
    client's oldest goes in turn. So whoever fills all of their threads with what takes long leaves as many to the others."""

    def __init__(self, threads: int, together: int | None = None) -> None:
        """together: calls of all clients that run at once, in place of twice as many as of one."""
        self._threads = threads
        self._free = 2 * threads if together is None else together
        self._pool = ThreadPoolExecutor(self._free, thread_name_prefix="prepare")
        self._running: Counter[str] = Counter()
        """Calls, by client."""
        self._waiting: dict[str, deque[Work]] = {}
        """What waits, by client; no queue is empty, and the client whose turn is next comes first."""

    async def run(self, client: str, work: Callable[[], T]) -> T:
        """The result of `work`. A caller that is cancelled before its turn leaves the line; later the programs that the work has started
        are ended, for whose time the thread would be missing."""
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        call = Call()
        self._waiting.setdefault(client, deque()).append((partial(_within, call, work), result))
        self._start()
        try:
            return await result
        except asyncio.CancelledError:
            call.end()
            raise
        finally:
            del result  # it holds what is raised, whose frames hold this one: they would keep each other, and a body

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> None:
        while self._free and (client := next((one for one in self._waiting if self._running[one] < self._threads), None)) is not None:
            line = self._waiting.pop(client)
            work, result = line.popleft()
            if line:
                self._waiting[client] = line  # behind all others
            if result.done():
                continue
            self._free -= 1
            self._running[client] += 1
            running = asyncio.get_running_loop().run_in_executor(self._pool, work)
            running.add_done_callback(partial(self._ended, client, result))

    def _ended(self, client: str, result: asyncio.Future[Any], ran: asyncio.Future[Any]) -> None:
        self._free += 1
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]
        error = None if ran.cancelled() else ran.exception()  # asked in any case, or asyncio would complain
        if not result.done() and not ran.cancelled():
            if error is None:
                result.set_result(ran.result())
            else:
                result.set_exception(error)
        self._start()


def _within(call: Call, work: Callable[[], T]) -> T:
    with call:
        return work()
