"""Work in threads, in which clients take turns: who brings much waits behind their own work, and nobody else behind it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from models.media.confined import Call
from server.gateway.courtesy import Courtesy

T = TypeVar("T")
Result = asyncio.Future[Any]


@dataclass(eq=False)
class Work:
    """A call, from its place in the line to its end."""

    make: Callable[[], Any]
    call: Call
    is_long: bool = False
    """It has one of the few places for long work."""
    began: float = 0.0
    spent: float = 0.0
    """Seconds of a CPU."""

    def __call__(self) -> Any:
        before = time.thread_time()
        try:
            with self.call:
                return self.make()
        finally:
            self.spent = time.thread_time() - before


class Turns:
    """For one event loop. At most `threads` calls of one client run at once, and twice as many of all together; of those that wait, each
    client's oldest goes in turn. So whoever fills all of their threads with what takes long leaves as many to the others.

    Clients whose work takes long have half of `threads` together, and may have to rest (`Courtesy`)."""

    def __init__(self, threads: int, together: int | None = None, courtesy: Courtesy | None = None) -> None:
        """together: calls of all clients that run at once, in place of twice as many as of one."""
        self._threads = threads
        self._free = 2 * threads if together is None else together
        self._free_for_long = max(1, threads // 2)
        self._pool = ThreadPoolExecutor(self._free, thread_name_prefix="prepare")
        self._courtesy = courtesy or Courtesy()
        self._running: Counter[str] = Counter()
        """Calls, by client, and those after which it rests."""
        self._waiting: dict[str, deque[tuple[Work, Result]]] = {}
        """What waits, by client; no queue is empty, and the client whose turn is next comes first."""

    async def run(self, client: str, make: Callable[[], T]) -> T:
        """The result of `make`. A caller that is cancelled before its turn leaves the line; later the programs that the work has started
        are ended, for whose time the thread would be missing."""
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        work = Work(make, Call())
        self._waiting.setdefault(client, deque()).append((work, result))
        self._start()
        try:
            return await result
        except asyncio.CancelledError:
            work.call.end()
            self._leave_line(client, work, result)
            raise
        finally:
            del result, work, make  # what is raised has frames that hold this one: they would keep each other, and a body

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _leave_line(self, client: str, work: Work, result: Result) -> None:
        """What it was to work on would stay in memory until its turn."""
        line = self._waiting.get(client)
        if line is None:
            return
        with suppress(ValueError):
            line.remove((work, result))
        if not line:
            del self._waiting[client]

    def _start(self) -> None:
        while self._free and (client := next(filter(self._may_begin, self._waiting), None)) is not None:
            line = self._waiting.pop(client)
            work, result = line.popleft()
            if line:
                self._waiting[client] = line  # behind all others
            if result.done():
                continue
            work.is_long = self._courtesy.is_long(client)
            work.began = time.monotonic()
            self._free -= 1
            self._free_for_long -= work.is_long
            self._running[client] += 1
            running = asyncio.get_running_loop().run_in_executor(self._pool, work)
            running.add_done_callback(partial(self._ended, client, work, result))

    def _may_begin(self, client: str) -> bool:
        return self._running[client] < self._threads and (self._free_for_long > 0 or not self._courtesy.is_long(client))

    def _ended(self, client: str, work: Work, result: Result, ran: Result) -> None:
        self._free += 1
        self._free_for_long += work.is_long
        rest = self._courtesy.rest(client, work.began, work.spent)
        if rest:
            asyncio.get_running_loop().call_later(rest, self._rested, client)
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
