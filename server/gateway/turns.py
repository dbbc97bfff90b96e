"""Work in threads, in which clients take turns: who brings much waits behind their own work, and nobody else behind it."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from models.media.confined import Call
from server.gateway.courtesy import Courtesy, give_way

T = TypeVar("T")
Work = tuple[Callable[[], Any], "asyncio.Future[Any]"]


class Turns:
    """For one event loop. At most `threads` calls of one client run at once, and twice as many of all together; of those that wait, each
    client's oldest goes in turn. So whoever fills all of their threads with what takes long leaves as many to the others."""

    def __init__(self, threads: int, together: int | None = None, courtesy: Courtesy | None = None) -> None:
        """together: calls of all clients that run at once, in place of twice as many as of one. courtesy: long work gives
        way to others', and rests where they would feel it."""
        self._threads = threads
        self._free = 2 * threads if together is None else together
        self._pool = ThreadPoolExecutor(self._free, thread_name_prefix="prepare")
        self._patient_pool = ThreadPoolExecutor(self._free, thread_name_prefix="prepare-long", initializer=give_way)
        self._courtesy = courtesy
        self._running: Counter[str] = Counter()
        """Calls, by client, and those after which it rests."""
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
        for pool in (self._pool, self._patient_pool):
            pool.shutdown(wait=False, cancel_futures=True)

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
            loop = asyncio.get_running_loop()
            gives_way = self._courtesy is not None and self._courtesy.gives_way(client)
            running = loop.run_in_executor(self._patient_pool if gives_way else self._pool, work)
            running.add_done_callback(partial(self._ended, client, loop.time(), result))

    def _ended(self, client: str, began: float, result: asyncio.Future[Any], ran: asyncio.Future[Any]) -> None:
        self._free += 1
        loop = asyncio.get_running_loop()
        rest = self._courtesy.rest(client, loop.time() - began) if self._courtesy else 0.0
        if rest:
            loop.call_later(rest, self._rested, client)
        else:
            self._leave(client)
        error = None if ran.cancelled() else ran.exception()  # asked in any case, or asyncio would complain
        if not result.done() and not ran.cancelled():
            if error is None:
                result.set_result(ran.result())
            else:
                result.set_exception(error)
        self._start()

    def _rested(self, client: str) -> None:
        self._leave(client)
        self._start()

    def _leave(self, client: str) -> None:
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]


def _within(call: Call, work: Callable[[], T]) -> T:
    with call:
        return work()
