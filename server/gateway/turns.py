"""Work in threads, in which clients take turns: who brings much waits behind their own work, and nobody else behind it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from models.media.confined import Call
from server.gateway.heavy_clients import HeavyClients
from server.gateway.line import Line
from server.process import system

LONG = 0.5
"""Seconds of a CPU from which a call counts as long."""
AGAIN = 0.1
"""Seconds after which one that waits more than it works is looked at again."""
T = TypeVar("T")


@dataclass(eq=False)
class Work:
    """A call in a thread."""

    make: Callable[[], Any]
    call: Call
    look: asyncio.TimerHandle | None = None
    """The next one at how long it takes."""
    thread: int = 0
    """As the system numbers it."""
    _clock: int | None = None
    """Of the thread's time on a CPU, while it runs."""
    _before: float = 0.0
    _spent: float = 0.0
    ended: bool = False
    """Its thread may do other work already."""

    def __call__(self) -> Any:
        self.thread, self._before = threading.get_native_id(), time.thread_time()
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        try:
            with self.call:
                return self.make()
        finally:
            self.ended, self._clock, self._spent = True, None, time.thread_time() - self._before

    @property
    def seconds(self) -> float:
        """Of a CPU, so far."""
        return self._spent if (clock := self._clock) is None else time.clock_gettime(clock) - self._before


class Turns:
    """For one event loop. At most `threads` calls of one client run at once, and twice as many of all together; of those that wait, each
    client's oldest goes in turn. So whoever fills all of their threads with what takes long leaves as many to the others.

    A call that takes long goes on at a low priority. Its client counts as heavy from then on: heavy clients have half of `threads`
    together, of low priority from the beginning."""

    def __init__(self, threads: int, together: int | None = None, heavy: HeavyClients | None = None) -> None:
        """together: calls of all clients that run at once, in place of twice as many as of one."""
        self._together = 2 * threads if together is None else together
        self._for_heavy = max(1, threads // 2)
        self._pool = self._new_pool()
        self._slow_pool = ThreadPoolExecutor(self._for_heavy, thread_name_prefix="prepare-slowly", initializer=system.lower_own_priority)
        self._heavy = HeavyClients() if heavy is None else heavy
        self._line = Line(self._together, threads, self._may_begin)

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
        for pool in (self._pool, self._slow_pool):
            pool.shutdown(wait=False, cancel_futures=True)

    def _may_begin(self, client: str) -> bool:
        return client not in self._heavy or self._line.held_by(*(one for one in self._line if one in self._heavy)) < self._for_heavy

    def _begun(self, client: str, work: Work) -> asyncio.Future[Any]:
        loop, is_heavy = asyncio.get_running_loop(), client in self._heavy
        ran = loop.run_in_executor(self._slow_pool if is_heavy else self._pool, work)
        work.look = None if is_heavy else loop.call_later(LONG, self._look, client, work)
        ran.add_done_callback(partial(self._ended, client, work))
        return ran

    def _look(self, client: str, work: Work) -> None:
        """At a call that has not ended for a while."""
        if work.ended:
            return
        if work.seconds < LONG:
            work.look = asyncio.get_running_loop().call_later(AGAIN, self._look, client, work)
            return
        self._heavy.add(client, work.seconds)
        system.lower_priority(work.thread)
        self._pool.shutdown(wait=False)  # the thread ends with its call, since nobody may raise its priority again
        self._pool = self._new_pool()

    def _new_pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._together, thread_name_prefix="prepare")

    def _ended(self, client: str, work: Work, _ran: asyncio.Future[Any]) -> None:
        if work.look is not None:
            work.look.cancel()
        if work.seconds >= LONG:
            self._heavy.add(client, work.seconds)
        self._line.leave(client, 1)
