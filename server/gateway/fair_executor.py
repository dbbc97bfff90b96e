"""A fair thread pool: clients are served round-robin, so a client with much work delays only itself."""

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
from server.concurrency import ClientBound
from server.processes import os_process

LONG_CALL_CPU_S = 0.5
"""CPU time in seconds from which a call counts as long."""
RECHECK_INTERVAL_S = 0.1
"""Interval in seconds at which the CPU time of a call that mostly waits is checked again."""
HEAVY_S_PER_CPU_S = 10.0
"""Number of seconds for which a client counts as heavy, per second of CPU time of its call."""
MAX_HEAVY_S = 60.0
"""Maximum of these seconds."""
MAX_INLINE_BODY_BYTES = 64 * 1024
"""Size of the largest body that is parsed inline, because handing it to a thread would take longer."""
LARGE_BODY_BYTES = 1024 * 1024
"""Size above which parsing takes so long that smaller bodies should not wait for it."""
T = TypeVar("T")


class HeavyClients:
    """The clients of one event loop whose calls have taken long, and whose next calls probably will."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        """Times (`time.monotonic`) at which clients cease to be heavy."""

    def add(self, client: str, seconds: float) -> None:
        """Note that a client's call has taken so many seconds of CPU time."""
        until = max(self._until.get(client, 0.0), time.monotonic() + min(MAX_HEAVY_S, HEAVY_S_PER_CPU_S * seconds))
        self._until = {heavy: end for heavy, end in self._until.items() if heavy in self} | {client: until}

    def __contains__(self, client: str) -> bool:
        return time.monotonic() < self._until.get(client, 0.0)


@dataclass(eq=False)
class ThreadCall:
    """A call in a thread."""

    function: Callable[[], Any]
    scope: CancelScope
    check_timer: asyncio.TimerHandle | None = None
    thread: int = 0
    _clock: int | None = None
    """Clock of the thread's CPU time while the call runs."""
    _before: float = 0.0
    _spent: float = 0.0
    ended: bool = False
    """Whether the thread may be doing other work already."""

    def __call__(self) -> Any:
        self.thread, self._before = threading.get_native_id(), time.thread_time()
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        try:
            with self.scope:
                return self.function()
        finally:
            self.ended, self._clock, self._spent = True, None, time.thread_time() - self._before

    @property
    def cpu_s(self) -> float:
        """CPU time of the call so far."""
        return self._spent if (clock := self._clock) is None else time.clock_gettime(clock) - self._before


class FairExecutor:
    """An executor for one event loop. It runs at most `threads` calls of one client at once and twice as many in all; clients whose calls
    wait are served round-robin. A client that keeps all of its threads busy therefore leaves the same number to the others.

    A long call continues at low priority, and its client counts as heavy for a while: heavy clients share half of `threads`, of low
    priority."""

    def __init__(
        self, threads: int, max_concurrent: int | None = None, heavy: HeavyClients | None = None, *, keep_priority: bool = False
    ) -> None:
        """max_concurrent: calls of all clients that run at once; default: twice `threads`. keep_priority: no call counts as long, because
        processes that it starts would inherit the low priority."""
        self._keep_priority = keep_priority
        self._max_concurrent = 2 * threads if max_concurrent is None else max_concurrent
        self._max_heavy_calls = max(1, threads // 2)
        self._pool = self._new_pool()
        self._low_priority_pool = ThreadPoolExecutor(
            self._max_heavy_calls, thread_name_prefix="prepare-slowly", initializer=os_process.lower_own_priority
        )
        self._heavy = HeavyClients() if heavy is None else heavy
        self._running = ClientBound(self._max_concurrent, threads, self._may_start)

    async def run(self, client: str, function: Callable[[], T]) -> T:
        """Return the result of a function. If the caller is cancelled, the call leaves the queue, or the programs that it has started are
        ended, so that its thread becomes free."""
        call = ThreadCall(function, CancelScope())
        del function  # an exception's frames include this one: they would keep each other, and a body, alive
        try:
            await self._running.enter(client, 1)
            return await asyncio.shield(self._submit(client, call))  # a thread cannot be stopped: it counts as running until it ends
        except asyncio.CancelledError:
            call.scope.end()
            raise
        finally:
            del call

    def close(self) -> None:
        for pool in (self._pool, self._low_priority_pool):
            pool.shutdown(wait=False, cancel_futures=True)

    def _may_start(self, client: str) -> bool:
        if client not in self._heavy:
            return True
        return sum(self._running.amount(running) for running in self._running if running in self._heavy) < self._max_heavy_calls

    def _submit(self, client: str, call: ThreadCall) -> asyncio.Future[Any]:
        loop, is_heavy = asyncio.get_running_loop(), client in self._heavy
        ran = loop.run_in_executor(self._low_priority_pool if is_heavy else self._pool, call)
        call.check_timer = None if is_heavy or self._keep_priority else loop.call_later(LONG_CALL_CPU_S, self._check_duration, client, call)
        ran.add_done_callback(partial(self._on_done, client, call))
        return ran

    def _check_duration(self, client: str, call: ThreadCall) -> None:
        """Check the CPU time of a running call, and lower its priority once it counts as long."""
        if call.ended:
            return
        if call.cpu_s < LONG_CALL_CPU_S:
            call.check_timer = asyncio.get_running_loop().call_later(RECHECK_INTERVAL_S, self._check_duration, client, call)
            return
        self._heavy.add(client, call.cpu_s)
        os_process.lower_priority(call.thread)
        self._pool.shutdown(wait=False)  # the thread ends with its call, since its priority cannot be raised again
        self._pool = self._new_pool()

    def _new_pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._max_concurrent, thread_name_prefix="prepare")

    def _on_done(self, client: str, call: ThreadCall, _ran: asyncio.Future[Any]) -> None:
        if call.check_timer is not None:
            call.check_timer.cancel()
        if call.cpu_s >= LONG_CALL_CPU_S and not self._keep_priority:
            self._heavy.add(client, call.cpu_s)
        self._running.give(client, 1)


class BodyExecutor:
    """An executor of one event loop that parses large bodies one at a time, because each needs several times its size in memory. Smaller
    bodies do not wait for them."""

    def __init__(self, heavy: HeavyClients | None = None) -> None:
        self._executor = FairExecutor(1, max_concurrent=1, heavy=heavy)
        self._medium_body_executor = FairExecutor(1, max_concurrent=1)

    async def run(self, client: str, nbytes: int, work: Callable[[], T]) -> T:
        """Return the result of `work` on a body of so many bytes."""
        if nbytes <= MAX_INLINE_BODY_BYTES:
            return work()
        return await (self._executor if nbytes > LARGE_BODY_BYTES else self._medium_body_executor).run(client, work)

    def close(self) -> None:
        self._executor.close()
        self._medium_body_executor.close()
