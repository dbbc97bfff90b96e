"""A gateway's connection to Redis: its scripts and commands, whether it can be used, and its clock.

The beat finds out whether Redis can be used; all other callers rely on that, or wait.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

import hiredis
import msgspec
import redis.asyncio

from server.concurrency import Deadline, TimerWheel
from server.queue.connect import (
    ANSWER_TIMEOUT_S,
    CHUNK_BYTES,
    VALUE_TTL_MS,
    FirstContact,
    RedisUnavailable,
    as_unavailable,
    survives,
)
from server.queue.keys import Keyspace
from server.queue.messages import QueuedJob
from server.queue.script import ArgsT, ResultT, Script, encode_command

T = TypeVar("T")

log = logging.getLogger(__name__)

PAUSE_S = 0.1
MAX_PAUSE_S = 1.0
COMMAND_TIMEOUT_S = 1.0
"""Timeout of commands that move no payload."""
CONCURRENT_COMMANDS = 16
CONCURRENT_CHUNKS = 2
"""Chunks of large values that are sent at once. Each has the whole timeout for itself, also over a slow link, and the beat goes first."""
CHUNKS_PER_RENEWAL = 16
SAME_WARNING_S = 10.0
"""Time between two warnings about one key that cannot be used."""


INCOMPLETE = object()
"""Value that a reader returns while an answer is incomplete."""


class RespPool:
    """Connections of one event loop, each for one command at a time. A caller must not be cancelled in mid-command.

    Raises RedisUnavailable for what Redis cannot do now; other errors are redis-py's."""

    def __init__(self, client: Any, keyspace: Keyspace) -> None:
        self.keyspace = keyspace
        self._pool = client.connection_pool
        self._idle: list[_RespConnection] = []
        self._busy: set[_RespConnection] = set()
        self._ticks = TimerWheel()

    async def run(self, script: Script[ArgsT, ResultT], args: ArgsT, messages: Iterable[bytes] = ()) -> ResultT:
        arguments = (1, self.keyspace.name(""), *script.arguments(args, messages))
        try:
            return script.read(await self.command("EVALSHA", script.sha, *arguments))
        except redis.exceptions.NoScriptError:
            return script.read(await self.command("EVAL", script.source, *arguments))

    async def command(self, *arguments: Any, timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
        """Return the answer. `timeout_s`: until the server counts as unavailable."""
        # servers close connections that were idle for long
        while (connection := self._idle.pop() if self._idle else _RespConnection(self._pool)).lost:
            await connection.close()
        self._busy.add(connection)
        try:
            with Deadline(self._ticks, timeout_s):
                if connection.transport is None:
                    await connection.connect()
                answer = await connection.execute(encode_command(arguments))
        except BaseException as error:
            if survives(error):
                self._idle.append(connection)
            else:
                await connection.close()
                await self._drop_idle()
            if isinstance(error, TimeoutError):
                raise RedisUnavailable(cause=f"no answer within {timeout_s:g} s") from error
            if (unavailable := as_unavailable(error)) is not None:
                raise unavailable from error
            raise
        finally:
            self._busy.discard(connection)
        self._idle.append(connection)
        return answer

    async def close(self) -> None:
        for connection in tuple(self._busy):
            await connection.close()
        await self._drop_idle()

    async def _drop_idle(self) -> None:
        """Close the idle ones: what broke one connection has broken the others."""
        while self._idle:
            await self._idle.pop().close()


class _RespConnection(asyncio.Protocol):
    """One connection: redis-py makes it; from then on its bytes come here, without streams and locks around them."""

    def __init__(self, pool: Any) -> None:
        self._connection = pool.connection_class(**pool.connection_kwargs)
        self._connection.socket_timeout = None  # ours counts for the whole command
        self._reader: Any = None
        self._answer: asyncio.Future[Any] | None = None
        self.lost: Exception | None = None
        """Not None: the server has closed it."""
        self.transport: asyncio.Transport | None = None

    async def connect(self) -> None:
        await self._connection.connect()
        parse_error = self._connection._parser.parse_error
        self._reader = hiredis.Reader(protocolError=redis.exceptions.InvalidResponse, replyError=parse_error, notEnoughData=INCOMPLETE)
        transport = self._connection._writer.transport
        transport.set_protocol(self)
        self.transport = transport

    async def execute(self, packed: bytes) -> Any:
        """Return the answer to a command. Raises it if it is an error."""
        if self.lost is not None:
            raise self.lost
        assert self.transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(packed)
        return await self._answer

    async def close(self) -> None:
        await self._connection.disconnect(nowait=True)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            answer = self._reader.gets()
        except redis.exceptions.RedisError as error:
            answer = error
        if answer is INCOMPLETE or self._answer is None or self._answer.done():
            return
        if isinstance(answer, Exception):
            self._answer.set_exception(answer)
        else:
            self._answer.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = redis.exceptions.ConnectionError(f"the connection was closed: {error or 'by the server'}")
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(self.lost)


class GatewayRedisLink:
    """Connections of one event loop."""

    def __init__(self, client: redis.asyncio.Redis, keyspace: Keyspace, grace: float, first: FirstContact) -> None:
        """`grace`: seconds for which requests wait for a Redis that is unavailable."""
        self._client = client
        self.resp = RespPool(client, keyspace)
        self.listener = RespPool(client, keyspace)
        """Connection of the one blocking read that may be interrupted."""
        self.keyspace = keyspace
        self.name = keyspace.name
        self.service_name = keyspace.service
        self._grace = grace
        self._first = first
        self._tasks: set[asyncio.Task[Any]] = set()
        self._commands = asyncio.Semaphore(CONCURRENT_COMMANDS)
        self._chunks = asyncio.Semaphore(CONCURRENT_CHUNKS)
        self._reason = RedisUnavailable()
        """The latest reason why it was unavailable."""
        self._unavailable_since: float | None = time.monotonic()
        self._logged_unavailable = False
        self._latest_warning = "", 0.0
        """Latest warning about a single key, and its time."""
        self.clock_offset_ms = time.time() * 1000 - time.monotonic() * 1000
        """Redis' clock less this machine's monotonic one."""
        self.is_closed = False
        self.available = asyncio.Event()
        self.beat_requested = asyncio.Event()
        """Set when Redis is lost, so that the beat looks at once."""

    async def run(self, script: Script[ArgsT, ResultT], args: ArgsT, messages: Iterable[bytes] = ()) -> ResultT:
        """Return what a script answers. Raises RedisUnavailable: at once if that is known, within a second if not."""
        return await self.call_limited(lambda: self.resp.run(script, args, messages))

    async def command(self, *arguments: Any) -> Any:
        """Return what a command answers. Raises what `run` does."""
        return await self.call_limited(lambda: self.resp.command(*arguments))

    async def call_limited(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Make one of a limited number of calls at a time. Raises what `run` does."""
        self.raise_if_unavailable()

        async def call_in_turn() -> T:
            async with self._commands:
                return await call()

        return await self.call_now(call_in_turn())

    async def call_now(self, work: Coroutine[Any, Any, T], *, beat: bool = False) -> T:
        """Work before others that wait, even if Redis is known to be unavailable. beat: its errors make Redis unavailable for all."""
        task = self.start(work)
        if not (await asyncio.wait({task}, timeout=COMMAND_TIMEOUT_S))[0]:
            await asyncio.wait({task}, timeout=PAUSE_S)  # a process that was held up itself has not read yet what has come
        try:
            if task.done():
                return task.result()
            raise RedisUnavailable(detail=f"the queue's Redis has not answered for {COMMAND_TIMEOUT_S:g} s")
        except RedisUnavailable as error:
            self.mark_unavailable(error, beat=beat)
            raise

    async def run_with_payload(self, script: Script[ArgsT, ResultT], args: ArgsT, messages: Iterable[bytes] = ()) -> ResultT:
        """Run a script that takes its time, and is not cancelled. After RedisUnavailable the caller decides whether Redis is lost."""
        async with self._commands:
            return await self.resp.run(script, args, messages)

    async def write_large(self, key: str, data: bytes, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """Replace a value, in chunks. It expires unless a script takes it over. Once it is not wanted any more, it is removed.

        A caller must not be cancelled in the middle of a chunk (see `shield`). Raises RedisUnavailable, as do the next ones.
        """
        await self._move_chunk("SET", key, data[:CHUNK_BYTES], "PX", VALUE_TTL_MS)
        for count, at in enumerate(range(CHUNK_BYTES, len(data), CHUNK_BYTES), start=1):
            if not is_wanted():
                await self.delete(key)
                return
            await self._move_chunk("APPEND", key, data[at : at + CHUNK_BYTES])
            if count % CHUNKS_PER_RENEWAL == 0 or at + CHUNK_BYTES >= len(data):
                await self._move_chunk("PEXPIRE", key, VALUE_TTL_MS)

    async def read_large(self, key: str) -> bytes:
        """Return a value, read in chunks; empty if there is none."""
        chunks: list[bytes] = []
        while not chunks or len(chunks[-1]) == CHUNK_BYTES:
            at = len(chunks) * CHUNK_BYTES
            chunks.append(await self._move_chunk("GETRANGE", key, at, at + CHUNK_BYTES - 1))
        return b"".join(chunks)

    async def read_chunk(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return values that are a chunk together; None for each that is missing."""
        values: list[bytes | None] = await self._move_chunk("MGET", keys[0], *map(self.name, keys[1:]))
        return values

    async def delete(self, key: str) -> None:
        await self._move_chunk("DEL", key)

    async def _move_chunk(self, command: str, key: str, *words: str | bytes | int) -> Any:
        async with self._chunks:
            return await self.resp.command(command, self.name(key), *words)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run in a task of its own, until `close`."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def shield(self, work: Coroutine[Any, Any, T]) -> T:
        """Let a cancelled caller leave at once, while the command ends by itself.

        Cancelling redis-py in mid-command costs a connection and, under Python 3.11, may swallow the cancellation."""
        return await asyncio.shield(self.start(work))

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run in a task as `spawn` does, for a caller that may leave before it ends."""
        task = self.spawn(work)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def disconnect(self) -> None:
        """Drop all connections: new ones find the new master."""
        await self._client.connection_pool.disconnect()
        await self.resp.close()
        await self.listener.close()

    async def close(self) -> None:
        """End what was spawned; the connections stay."""
        self.is_closed = True
        while self._tasks:  # Python 3.11's wait_for, which redis-py uses, may swallow a cancellation
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=PAUSE_S)

    @property
    def is_unavailable(self) -> bool:
        return self._unavailable_since is not None

    def pause(self, tried_s: float) -> float:
        """Return the seconds until the next try after one that took `tried_s`.

        They are a tenth of the time since Redis was lost, so that recovery is noticed that late at most."""
        lost_s = 0.0 if self._unavailable_since is None else time.monotonic() - self._unavailable_since
        return max(PAUSE_S, min(MAX_PAUSE_S, lost_s / 10) - tried_s)

    def raise_if_unavailable(self) -> None:
        if self._unavailable_since is not None:
            raise RedisUnavailable(self._reason.detail, self._reason.refusal, self._reason.cause)

    def mark_unavailable(self, reason: RedisUnavailable, *, beat: bool = False) -> None:
        if reason.is_about_key and not beat:
            text, since = self._latest_warning
            if str(reason) != text or time.monotonic() - since > SAME_WARNING_S:
                log.warning("queue key unusable: %s", reason)
                self._latest_warning = str(reason), time.monotonic()
            return
        self._reason = reason
        self._first.log_failure(reason)
        if not self._logged_unavailable:
            log.warning("queue unavailable: %s", reason)
            self._logged_unavailable = True
        if self._unavailable_since is None:
            self._unavailable_since = time.monotonic()
            self.available.clear()
            self.beat_requested.set()

    def mark_available(self) -> None:
        """Note that Redis has taken this gateway's beat: it answers, and accepts writes."""
        if self._logged_unavailable:
            log.info("queue back")
            self._logged_unavailable = False
        self._first.mark_reached()
        self._unavailable_since = None
        self.available.set()

    async def wait_available(self) -> None:
        """Wait until Redis can be used. Raises RedisUnavailable after the grace."""
        if self._unavailable_since is None:
            return
        try:
            async with asyncio.timeout(self._grace - (time.monotonic() - self._unavailable_since)):
                await self.available.wait()
        except TimeoutError:
            raise self._grace_error() from None

    def over_grace(self, since: float) -> bool:
        """Return whether the grace has passed since then, in `time.monotonic()`."""
        return time.monotonic() - since > self._grace

    def grace_error(self) -> RedisUnavailable | None:
        """Return the error for callers that wait, once Redis has been unavailable for longer than the grace."""
        return None if self._unavailable_since is None or not self.over_grace(self._unavailable_since) else self._grace_error()

    def set_clock(self, redis_ms: int) -> None:
        self.clock_offset_ms = redis_ms - time.monotonic() * 1000

    def with_deadline(self, job: QueuedJob, expires_at: float) -> QueuedJob:
        """Return the job with a deadline on Redis' clock that is this time of `time.monotonic()`."""
        return msgspec.structs.replace(job, deadline_ms=int(self.now_ms() + (expires_at - time.monotonic()) * 1000))

    def now_ms(self) -> float:
        """Return Redis' clock in Unix milliseconds, as estimated every second; this machine's until Redis has answered once."""
        return time.monotonic() * 1000 + self.clock_offset_ms

    def _grace_error(self) -> RedisUnavailable:
        state = f"refuses to work ({self._reason.refusal})" if self._reason.refusal else "does not answer"
        return RedisUnavailable(detail=f"the queue's Redis {state}, for {self._grace:g} s by now", refusal=self._reason.refusal)
