"""Work in threads, in which clients take turns: who brings much waits behind their own work, and nobody else behind it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from models.media.confined import Call
from server.gateway.courtesy import Courtesy
from server.process.line import Line

T = TypeVar("T")


@dataclass(eq=False)
class Work:
    """A call in a thread."""

    make: Callable[[], Any]
    call: Call
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
        together = 2 * threads if together is None else together
        self._threads = threads
        self._for_long = max(1, threads // 2)
        self._pool = ThreadPoolExecutor(together, thread_name_prefix="prepare")
        self._courtesy = courtesy or Courtesy()
        self._line = Line(together, threads, self._may_begin)
        self._resting: Counter[str] = Counter()
        """Calls that have ended, and after which their client still rests."""

    async def run(self, client: str, make: Callable[[], T]) -> T:
        """The result of `make`. A caller that is cancelled before its turn leaves the line; later the programs that the work has started
        are ended, for whose time the thread would be missing."""
        work = Work(make, Call())
        del make  # what is raised has frames that hold this one: they would keep each other, and a body
        try:
            await self._line.enter(client, 1)
            return await asyncio.shield(self._begun(client, work))  # a thread cannot be stopped: until it ends it has its place
        except asyncio.CancelledError:
            work.call.end()
            raise
        finally:
            del work

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _may_begin(self, client: str) -> bool:
        if self._line.held_by(client) + self._resting[client] >= self._threads:
            return False
        return not self._courtesy.is_long(client) or self._line.held_by(*filter(self._courtesy.is_long, self._line)) < self._for_long

    def _begun(self, client: str, work: Work) -> asyncio.Future[Any]:
        work.began = time.monotonic()
        ran = asyncio.get_running_loop().run_in_executor(self._pool, work)
        ran.add_done_callback(partial(self._ended, client, work))
        return ran

    def _ended(self, client: str, work: Work, _ran: asyncio.Future[Any]) -> None:
        rest = self._courtesy.rest(client, work.began, work.spent)
        if rest:
            self._resting[client] += 1
            asyncio.get_running_loop().call_later(rest, self._rested, client)
        self._line.leave(client, 1)

    def _rested(self, client: str) -> None:
        self._resting[client] -= 1
        if not self._resting[client]:
            del self._resting[client]
        self._line.start()
