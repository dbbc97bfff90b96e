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

LARGE = 16 * 1024
"""Bytes. A command with larger words is joined here: hiredis takes 180 µs for a picture of 150 KB where that takes 7."""
MORE = object()
"""A reader says this while an answer has not arrived to its end."""


PIECE_BYTES = 256 * 1024
"""Also the largest argument that a script is given: Redis stands still while it reads one."""
STORED_MS = 120_000
"""How long a value outlives its last piece: an output is read at once or by nobody, a message is taken over by the queue."""


class AsyncWire:
    """For one event loop: a connection carries one command at a time. A caller must not be cancelled in mid-command."""

    def __init__(self, client: Any, keyspace: Keyspace) -> None:
        self.keyspace = keyspace
        self._pool = client.connection_pool
        self._idle: list[_Line] = []
        self._busy: set[_Line] = set()
        self._ticks = TimerWheel()

    async def run(self, script: Script[ArgsT, ResultT], args: ArgsT, messages: Iterable[bytes] = ()) -> ResultT:
        arguments = (1, self.keyspace.name(""), *script.arguments(args, messages))
        try:
            return script.read(await self.command("EVALSHA", script.sha, *arguments))
        except redis.exceptions.NoScriptError:
            return script.read(await self.command("EVAL", script.source, *arguments))

    async def command(self, *words: Any, patience: float = ANSWER_TIMEOUT_S) -> Any:
        """`patience`: seconds until the server counts as away."""
        while (line := self._idle.pop() if self._idle else _Line(self._pool)).lost:  # servers close what has been idle for long
            await line.close()
        self._busy.add(line)
        try:
            with Deadline(self._ticks, patience):
                if line.transport is None:
                    await line.connect()
                answer = await line.ask(packed(words))
        except BaseException as error:
            if goes_on(error):
                self._idle.append(line)
                raise
            await line.close()
            await self._drop_idle()
            if isinstance(error, TimeoutError):
                raise redis.exceptions.TimeoutError(f"no answer within {patience:g} s") from error
            raise
        finally:
            self._busy.discard(line)
        self._idle.append(line)
        return answer

    async def close(self) -> None:
        for line in tuple(self._busy):
            await line.close()
        await self._drop_idle()

    async def _drop_idle(self) -> None:
        """Close the idle ones: what broke one connection has broken the others, which nobody was reading."""
        while self._idle:
            await self._idle.pop().close()


class _Line(asyncio.Protocol):
    """One connection: redis-py makes it; from then on its bytes come here, without streams and locks around them."""

    def __init__(self, pool: Any) -> None:
        self._connection = pool.connection_class(**pool.connection_kwargs)
        self._connection.socket_timeout = None  # ours counts for the whole command
        self._reader: Any = None
        self._answer: asyncio.Future[Any] | None = None
        self.lost: Exception | None = None
        """The server has closed it."""
        self.transport: asyncio.Transport | None = None

    async def connect(self) -> None:
        await self._connection.connect()
        parse_error = self._connection._parser.parse_error
        self._reader = hiredis.Reader(protocolError=redis.exceptions.InvalidResponse, replyError=parse_error, notEnoughData=MORE)
        transport = self._connection._writer.transport
        transport.set_protocol(self)
        self.transport = transport

    async def ask(self, packed: bytes) -> Any:
        """The answer to a command. Raises it, if it is an error."""
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
        if answer is MORE or self._answer is None or self._answer.done():
            return
        if isinstance(answer, Exception):
            self._answer.set_exception(answer)
        else:
            self._answer.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = redis.exceptions.ConnectionError(f"the connection was closed: {error or 'by the server'}")
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(self.lost)


def packed(words: tuple[Any, ...]) -> bytes:
    """A command as it is sent."""
    if not any(isinstance(word, bytes | memoryview) and len(word) > LARGE for word in words):
        packed: bytes = hiredis.pack_command(words)
        return packed
    encoded = [memoryview(word if isinstance(word, bytes | memoryview) else str(word).encode()) for word in words]
    return b"".join([b"*%d\r\n" % len(encoded), *(part for word in encoded for part in (b"$%d\r\n" % word.nbytes, word, b"\r\n"))])


def goes_on(error: BaseException) -> bool:
    """Whether a connection can be used after an error: it was the server's answer, and not that of a master that is one no more. Whoever
    connects anew, by name or by Sentinel, finds the new one."""
    return isinstance(error, redis.exceptions.ResponseError) and not isinstance(error, redis.exceptions.ReadOnlyError)
