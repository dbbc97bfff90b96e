"""Large values in Redis as a gateway reads and writes them, in pieces: over a slow link each piece arrives long before Redis counts as
unavailable, and the beat goes first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from server.queue.connect import CHUNK_BYTES, VALUE_TTL_MS, RespPool, redis_errors_as_unavailable

PIECES_AT_ONCE = 2
"""Number of chunks that a gateway sends at once. Each has the whole timeout for itself."""
PIECES_PER_RENEWAL = 16


class LargeValues:
    """Values of one event loop. A caller must not be cancelled in the middle of a piece (see `GatewayRedisLink.undisturbed`)."""

    def __init__(self, wire: RespPool) -> None:
        self._wire = wire
        self._line = asyncio.Semaphore(PIECES_AT_ONCE)

    async def write(self, key: str, data: bytes, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """Replace the value. It expires unless a script takes it over. Once it is not wanted any more, it is removed.

        Raises RedisUnavailable.
        """
        await self._send("SET", key, data[:CHUNK_BYTES], "PX", VALUE_TTL_MS)
        for count, at in enumerate(range(CHUNK_BYTES, len(data), CHUNK_BYTES), start=1):
            if not is_wanted():
                await self.delete(key)
                return
            await self._send("APPEND", key, data[at : at + CHUNK_BYTES])
            if count % PIECES_PER_RENEWAL == 0 or at + CHUNK_BYTES >= len(data):
                await self._send("PEXPIRE", key, VALUE_TTL_MS)

    async def read(self, key: str) -> bytes:
        """Return the value; empty if there is none. Raises RedisUnavailable."""
        pieces: list[bytes] = []
        while not pieces or len(pieces[-1]) == CHUNK_BYTES:
            at = len(pieces) * CHUNK_BYTES
            pieces.append(await self._send("GETRANGE", key, at, at + CHUNK_BYTES - 1))
        return b"".join(pieces)

    async def read_small(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return values that are a chunk together; None for each that is missing. Raises RedisUnavailable."""
        async with self._line:
            with redis_errors_as_unavailable():
                answer: list[bytes | None] = await self._wire.command("MGET", *map(self._wire.keyspace.name, keys))
                return answer

    async def delete(self, key: str) -> None:
        await self._send("DEL", key)

    async def _send(self, command: str, key: str, *words: str | bytes | int) -> bytes:
        async with self._line:
            with redis_errors_as_unavailable():
                answer: bytes = await self._wire.command(command, self._wire.keyspace.name(key), *words)
                return answer
