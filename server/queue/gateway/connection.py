"""A gateway's connection to Redis: its scripts and commands, whether it can be used, and what its clock says.

The beat finds out whether it can be used; everybody else is told, or waits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

import msgspec
import redis.asyncio

from server.queue.connect import away_is_one_error
from server.queue.errors import RedisAway
from server.queue.first_contact import FirstContact
from server.queue.keys import Keyspace
from server.queue.messages import QueuedJob
from server.queue.resp import AsyncWire
from server.queue.script import ArgsT, ResultT, Script

T = TypeVar("T")

log = logging.getLogger(__name__)

PAUSE_S = 0.1
LONGEST_PAUSE_S = 1.0
PATIENCE_S = 1.0
"""For commands that move no payload."""
CONCURRENT_COMMANDS = 16
SAY_AGAIN_S = 10.0
"""The log names a key that cannot be used so often."""


class AsyncLink:
    """For one event loop."""

    def __init__(self, client: redis.asyncio.Redis, keyspace: Keyspace, grace: float, first: FirstContact) -> None:
        """`grace`: seconds for which requests wait for a Redis that is away."""
        self._client = client
        self.wire = AsyncWire(client, keyspace)
        self.listener = AsyncWire(client, keyspace)
        """For the one blocking read that may be told to return."""
        self.name = keyspace.name
        self.service_name = keyspace.service
        self.digits = keyspace.digits
        """Ids of records and scenes of the partition begin with these."""
        self._grace = grace
        self._first = first
        self._tasks: set[asyncio.Task[Any]] = set()
        self._commands = asyncio.Semaphore(CONCURRENT_COMMANDS)
        self._reason = RedisAway()
        """Why it was away last."""
        self._away_since: float | None = time.monotonic()
        self._said = False
        """Whether the log's last word is that it is away."""
        self._foreign = "", 0.0
        """Latest warning about a single key, and its time."""
        self.clock_offset_ms = time.time() * 1000 - time.monotonic() * 1000
        """Redis' clock less this machine's monotonic one."""
        self.is_closed = False
        self.here = asyncio.Event()
        self.nudge = asyncio.Event()
        """Set when Redis is lost, so that the beat looks at once."""

    async def run(self, script: Script[ArgsT, ResultT], args: ArgsT, messages: Iterable[bytes] = ()) -> ResultT:
        """Return what a script answers. Raises RedisAway: at once if that is known, within a second if not."""
        return await self.ask(lambda: self.wire.run(script, args, messages))

    async def command(self, *words: Any) -> Any:
        """The same of a command."""
        return await self.ask(lambda: self.wire.command(*words))

    async def ask(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The same of what may send several."""
        self.check()

        async def in_turn() -> T:
            async with self._commands:
                return await call()

        return await self.at_once(in_turn)

    async def at_once(self, call: Callable[[], Coroutine[Any, Any, T]], *, beat: bool = False) -> T:
        """The same whatever is known, and before others that have asked. beat: what it is refused, everybody is."""
        task = self._begin(call())
        if not (await asyncio.wait({task}, timeout=PATIENCE_S))[0]:
            await asyncio.wait({task}, timeout=PAUSE_S)  # a process that was held up itself has not read yet what has come
        try:
            with away_is_one_error():
                if task.done():
                    return task.result()
            raise RedisAway(detail=f"the queue's Redis has not answered for {PATIENCE_S:g} s")
        except RedisAway as away:
            self.lost(away, beat=beat)
            raise

    async def move(self, script: Script[ArgsT, ResultT], args: ArgsT, messages: Iterable[bytes] = ()) -> ResultT:
        """A script that moves payload takes its time. After RedisAway the caller decides whether Redis is `lost`; it is not cancelled."""
        with away_is_one_error():
            async with self._commands:
                return await self.wire.run(script, args, messages)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Let it go on beside the caller, until `close`."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def undisturbed(self, work: Coroutine[Any, Any, T]) -> T:
        """A caller that is cancelled leaves at once; the command ends by itself.

        Cancelling redis-py in mid-command costs a connection and, under Python 3.11, may swallow the cancellation."""
        return await asyncio.shield(self._begin(work))

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = self.spawn(work)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to look at it
        return task

    async def reconnect(self) -> None:
        """Drop all connections: new ones find the new master."""
        await self._client.connection_pool.disconnect()
        await self._close_wires()

    async def disconnect(self) -> None:
        await self._client.aclose()
        await self._close_wires()

    async def _close_wires(self) -> None:
        await self.wire.close()
        await self.listener.close()

    async def close(self) -> None:
        """End what was spawned; the connections stay."""
        self.is_closed = True
        while self._tasks:  # Python 3.11's wait_for, which redis-py uses, may swallow a cancellation
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=PAUSE_S)

    @property
    def away(self) -> bool:
        return self._away_since is not None

    def pause(self, tried_s: float) -> float:
        """Seconds until the next try after one that took `tried_s`: a tenth of the time for which Redis has been away, so that recovery
        is noticed that late at most, and at most LONGEST_PAUSE_S."""
        away_s = 0.0 if self._away_since is None else time.monotonic() - self._away_since
        return max(PAUSE_S, min(LONGEST_PAUSE_S, away_s / 10) - tried_s)

    def check(self) -> None:
        """Raises RedisAway if it is known to be away."""
        if self._away_since is not None:
            raise RedisAway(self._reason.detail, self._reason.refusal, self._reason.cause)

    def lost(self, reason: RedisAway, *, beat: bool = False) -> None:
        if reason.of_a_key and not beat:
            text, since = self._foreign
            if str(reason) != text or time.monotonic() - since > SAY_AGAIN_S:
                log.warning("queue key unusable: %s", reason)
                self._foreign = str(reason), time.monotonic()
            return
        self._reason = reason
        self._first.failed(reason)
        if not self._said:
            log.warning("queue away: %s", reason)
            self._said = True
        if self._away_since is None:
            self._away_since = time.monotonic()
            self.here.clear()
            self.nudge.set()

    def found(self) -> None:
        """Redis has taken this gateway's beat: it answers, and it lets us write."""
        if self._said:
            log.info("queue back")
            self._said = False
        self._first.made()
        self._away_since = None
        self.here.set()

    async def wait(self) -> None:
        """Returns when Redis can be used; raises RedisAway once it has been away for longer than the grace."""
        if self._away_since is None:
            return
        try:
            async with asyncio.timeout(self._grace - (time.monotonic() - self._away_since)):
                await self.here.wait()
        except TimeoutError:
            raise self._over_grace() from None

    def over_grace(self, since: float) -> bool:
        """Whether the grace has passed since then, in `time.monotonic()`."""
        return time.monotonic() - since > self._grace

    def given_up(self) -> RedisAway | None:
        """Return what to tell those who wait, once Redis has been away for longer than the grace."""
        if self._away_since is None or time.monotonic() - self._away_since < self._grace:
            return None
        return self._over_grace()

    def set_clock(self, redis_ms: int) -> None:
        self.clock_offset_ms = redis_ms - time.monotonic() * 1000

    def until(self, job: QueuedJob, expires_at: float) -> QueuedJob:
        """Return the job with a deadline on Redis' clock that is this time of `time.monotonic()`."""
        return msgspec.structs.replace(job, deadline_ms=int(self.now_ms() + (expires_at - time.monotonic()) * 1000))

    def now_ms(self) -> float:
        """Redis' clock, Unix milliseconds, as estimated every second; this machine's until Redis has answered once."""
        return time.monotonic() * 1000 + self.clock_offset_ms

    def _over_grace(self) -> RedisAway:
        what = f"refuses to work ({self._reason.refusal})" if self._reason.refusal else "does not answer"
        return RedisAway(detail=f"the queue's Redis {what}, for {self._grace:g} s by now", refusal=self._reason.refusal)
