"""ThreadCall in threads, in which clients take turns: a client that brings much waits behind its own work, and nobody else behind it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from models.processes.confined_process import CancelScope
from server.concurrency.client_bound import ClientBound
from server.processes import os_process

LONG = 0.5
"""Seconds of a CPU from which a call counts as long."""
AGAIN = 0.1
"""Seconds after which one that waits more than it works is looked at again."""
REMEMBERED = 10.0
"""Seconds for each of a CPU that a call took, during which its client counts as heavy after it."""
LONGEST = 60.0
"""Limit of these seconds."""
SMALL_BODY = 64 * 1024
"""Bytes up to which a body is taken apart faster than handed to a thread."""
LARGE_BODY = 1024 * 1024
"""Bytes from which it takes so long that others should not wait for it."""
T = TypeVar("T")


class HeavyClients:
    """Clients whose work takes long, so that more of it is to be expected. For one event loop."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        """When each client ceases to be heavy (`time.monotonic`)."""

    def add(self, client: str, seconds: float) -> None:
        """It has a long call, or had one just now, that took so many seconds of a CPU."""
        until = max(self._until.get(client, 0.0), time.monotonic() + min(LONGEST, REMEMBERED * seconds))
        self._until = {one: when for one, when in self._until.items() if one in self} | {client: until}

    def __contains__(self, client: str) -> bool:
        return time.monotonic() < self._until.get(client, 0.0)


@dataclass(eq=False)
class ThreadCall:
    """A call in a thread."""

    make: Callable[[], Any]
    call: CancelScope
    look: asyncio.TimerHandle | None = None
    """The next one at how long it takes."""
    thread: int = 0
    """As the system numbers it."""
    _clock: int | None = None
    """The clock of the thread's time on a CPU, while it runs."""
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
        """Seconds of a CPU, so far."""
        return self._spent if (clock := self._clock) is None else time.clock_gettime(clock) - self._before


class FairExecutor:
    """For one event loop. At most `threads` calls of one client run at once, and twice as many of all together; of those that wait, each
    client's oldest goes in turn. So whoever fills all of their threads with what takes long leaves as many to the others.

    A call that takes long goes on at a low priority. Its client counts as heavy from then on: heavy clients have half of `threads`
    together, of low priority from the beginning."""

    def __init__(self, threads: int, together: int | None = None, heavy: HeavyClients | None = None, *, never_long: bool = False) -> None:
        """together: calls of all clients that run at once, in place of twice as many as of one. never_long: no call counts
        as long, since what it starts would inherit its low priority."""
        self._never_long = never_long
        self._together = 2 * threads if together is None else together
        self._for_heavy = max(1, threads // 2)
        self._pool = self._new_pool()
        self._slow_pool = ThreadPoolExecutor(
            self._for_heavy, thread_name_prefix="prepare-slowly", initializer=os_process.lower_own_priority
        )
        self._heavy = HeavyClients() if heavy is None else heavy
        self._running = ClientBound(self._together, threads, self._may_begin)

    async def run(self, client: str, make: Callable[[], T]) -> T:
        """The result of `make`. A caller that is cancelled before its turn leaves the line; later the programs that the work has started
        are ended, for whose time the thread would be missing."""
        work = ThreadCall(make, CancelScope())
        del make  # what is raised has frames that hold this one: they would keep each other, and a body
        try:
            await self._running.enter(client, 1)
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
        return (
            client not in self._heavy or sum(map(self._running.amount, filter(self._heavy.__contains__, self._running))) < self._for_heavy
        )

    def _begun(self, client: str, work: ThreadCall) -> asyncio.Future[Any]:
        loop, is_heavy = asyncio.get_running_loop(), client in self._heavy
        ran = loop.run_in_executor(self._slow_pool if is_heavy else self._pool, work)
        work.look = None if is_heavy or self._never_long else loop.call_later(LONG, self._look, client, work)
        ran.add_done_callback(partial(self._ended, client, work))
        return ran

    def _look(self, client: str, work: ThreadCall) -> None:
        """At a call that has not ended for a while."""
        if work.ended:
            return
        if work.seconds < LONG:
            work.look = asyncio.get_running_loop().call_later(AGAIN, self._look, client, work)
            return
        self._heavy.add(client, work.seconds)
        os_process.lower_priority(work.thread)
        self._pool.shutdown(wait=False)  # the thread ends with its call, since nobody may raise its priority again
        self._pool = self._new_pool()

    def _new_pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._together, thread_name_prefix="prepare")

    def _ended(self, client: str, work: ThreadCall, _ran: asyncio.Future[Any]) -> None:
        if work.look is not None:
            work.look.cancel()
        if work.seconds >= LONG and not self._never_long:
            self._heavy.add(client, work.seconds)
        self._running.give(client, 1)


class BodyExecutor:
    """Large bodies are taken apart one at a time, clients in turn: each needs several times its bytes. Smaller ones wait for none of them.

    For one event loop."""

    def __init__(self, heavy: HeavyClients | None = None) -> None:
        self._turns = FairExecutor(1, together=1, heavy=heavy)
        self._turns_of_smaller = FairExecutor(1, together=1)

    async def in_turn(self, client: str, nbytes: int, work: Callable[[], T]) -> T:
        """The result of `work` on a body of so many bytes. A caller that gives up before its turn leaves the line."""
        if nbytes <= SMALL_BODY:
            return work()
        return await (self._turns if nbytes > LARGE_BODY else self._turns_of_smaller).run(client, work)

    def close(self) -> None:
        self._turns.close()
        self._turns_of_smaller.close()
