"""Commands over connections of our own, for the few that every request pays for.

redis-py's client spends several times the cost of a command on pools, retries, deprecations and observation. Its connections (address,
TLS, password, Sentinel, protocol) are what is used here; answers come as Redis sent them, without per-command callbacks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import hiredis
import redis

from server.concurrency.cancellation import Deadline, TimerWheel
from server.queue.connect import ANSWER_TIMEOUT_S
from server.queue.keys import Keyspace
from server.queue.script import ArgsT, ResultT, Script

LARGE_ARGUMENT_BYTES = 16 * 1024
"""A command with larger arguments is joined here: hiredis takes 180 µs for an image of 150 KB, this 7."""
INCOMPLETE = object()
"""Value that a reader returns while an answer is incomplete."""
CHUNK_BYTES = 256 * 1024
"""Also the largest argument that a script is given: Redis stands still while it reads one."""
VALUE_TTL_MS = 120_000
"""Time to live of a value after its last chunk: an output is read at once or never, a message is taken over by the queue."""


class RespPool:
    """Connections of one event loop, each for one command at a time. A caller must not be cancelled in mid-command."""

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
        while (
            connection := self._idle.pop() if self._idle else _RespConnection(self._pool)
        ).lost:  # servers close what has been idle for long
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
                raise
            await connection.close()
            await self._drop_idle()
            if isinstance(error, TimeoutError):
                raise redis.exceptions.TimeoutError(f"no answer within {timeout_s:g} s") from error
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


def encode_command(arguments: tuple[Any, ...]) -> bytes:
    if not any(isinstance(word, bytes | memoryview) and len(word) > LARGE_ARGUMENT_BYTES for word in arguments):
        packed: bytes = hiredis.pack_command(arguments)
        return packed
    encoded = [memoryview(word if isinstance(word, bytes | memoryview) else str(word).encode()) for word in arguments]
    return b"".join([b"*%d\r\n" % len(encoded), *(part for word in encoded for part in (b"$%d\r\n" % word.nbytes, word, b"\r\n"))])


def survives(error: BaseException) -> bool:
    """Return whether a connection can be used after an error: it was an answer, and not that of a former master."""
    return isinstance(error, redis.exceptions.ResponseError) and not isinstance(error, redis.exceptions.ReadOnlyError)
