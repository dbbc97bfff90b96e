"""Commands over connections of our own, for the few that every request pays for.

redis-py's client spends several times the cost of a command on pools, retries, deprecations and observation. Its connections (address,
TLS, password, Sentinel, protocol) are what is used here; answers come as Redis sent them, without per-command callbacks.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import hiredis
import redis

from server.process.interruption import Limit, Ticks
from server.queue import lua
from server.queue.connect import ANSWER_TIMEOUT_S


class Wire:
    """For threads: each has a connection of its own. Raises what redis-py raises."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client  # closes its pool when it is forgotten
        self._pool: Any = client.connection_pool
        self._of_thread = threading.local()
        self._open: set[Any] = set()

    def script(self, name: str, *arguments: Any, keys: Sequence[str] = ()) -> Any:
        try:
            return self.command("EVALSHA", lua.sha(name), len(keys), *keys, *arguments)
        except redis.exceptions.NoScriptError:
            return self.command("EVAL", lua.source(name), len(keys), *keys, *arguments)

    def command(self, *words: Any) -> Any:
        connection = getattr(self._of_thread, "connection", None) or self._connect()
        try:
            connection.send_packed_command([hiredis.pack_command(words)], check_health=False)
            return connection.read_response()
        except redis.exceptions.ResponseError:  # the server has answered
            raise
        except BaseException:
            self._drop(connection)
            raise

    def close(self) -> None:
        for connection in self._open:
            connection.disconnect()

    def _connect(self) -> Any:
        connection = self._pool.connection_class(**self._pool.connection_kwargs)
        self._open.add(connection)
        try:
            connection.connect()
        except BaseException:
            self._drop(connection)
            raise
        self._of_thread.connection = connection
        return connection

    def _drop(self, connection: Any) -> None:
        self._of_thread.connection = None
        self._open.discard(connection)
        connection.disconnect()


class AsyncWire:
    """For one event loop: a connection carries one command at a time. A caller must not be cancelled in mid-command."""

    def __init__(self, client: Any) -> None:
        self._pool = client.connection_pool
        self._idle: list[Any] = []
        self._busy: set[Any] = set()
        self._ticks = Ticks()

    async def script(self, name: str, *arguments: Any) -> Any:
        try:
            return await self.command("EVALSHA", lua.sha(name), 0, *arguments)
        except redis.exceptions.NoScriptError:
            return await self.command("EVAL", lua.source(name), 0, *arguments)

    async def command(self, *words: Any, patience: float = ANSWER_TIMEOUT_S) -> Any:
        """`patience`: seconds until the server counts as away."""
        connection = self._idle.pop() if self._idle else None
        fresh = connection is None
        if connection is None:
            connection = self._pool.connection_class(**self._pool.connection_kwargs)
            connection.socket_timeout = None  # ours counts for the whole command
        self._busy.add(connection)
        try:
            with Limit(self._ticks, patience):
                if fresh:
                    await connection.connect()
                await connection.send_packed_command([hiredis.pack_command(words)], check_health=False)
                answer = await connection.read_response()
        except redis.exceptions.ResponseError:  # the server has answered
            self._idle.append(connection)
            raise
        except BaseException as error:
            await connection.disconnect(nowait=True)
            await self._drop_idle()
            if isinstance(error, TimeoutError):
                raise redis.exceptions.TimeoutError(f"no answer within {patience:g} s") from error
            raise
        finally:
            self._busy.discard(connection)
        self._idle.append(connection)
        return answer

    async def close(self) -> None:
        for connection in self._busy:
            await connection.disconnect(nowait=True)
        await self._drop_idle()

    async def _drop_idle(self) -> None:
        """What broke one connection has broken the others, which nobody was reading."""
        while self._idle:
            await self._idle.pop().disconnect(nowait=True)
