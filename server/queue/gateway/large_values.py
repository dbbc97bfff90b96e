"""Large values in Redis as a gateway reads and writes them, in pieces: over a slow link each piece arrives long before Redis counts as
unavailable, and the beat goes first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from server.queue.connect import away_is_one_error
from server.queue.resp import PIECE_BYTES, STORED_MS, AsyncWire

PIECES_AT_ONCE = 2
"""A gateway sends so many. Each has the whole patience for itself, and whoever waits longest sends the next one."""
PIECES_PER_RENEWAL = 16


class Freight:
    """For one event loop. A caller must not be cancelled in the middle of a piece (see `AsyncLink.undisturbed`)."""

    def __init__(self, wire: AsyncWire) -> None:
        self._wire = wire
        self._line = asyncio.Semaphore(PIECES_AT_ONCE)

    async def write(self, key: str, data: bytes, wanted: Callable[[], bool] = lambda: True) -> None:
        """In place of what was there. It expires unless somebody takes it over. Once it is not wanted any more, it is removed.

        Raises RedisAway.
        """
        await self._send("SET", key, data[:PIECE_BYTES], "PX", STORED_MS)
        for count, at in enumerate(range(PIECE_BYTES, len(data), PIECE_BYTES), start=1):
            if not wanted():
                await self.delete(key)
                return
            await self._send("APPEND", key, data[at : at + PIECE_BYTES])
            if count % PIECES_PER_RENEWAL == 0 or at + PIECE_BYTES >= len(data):
                await self._send("PEXPIRE", key, STORED_MS)

    async def read(self, key: str) -> bytes:
        """The value; empty if there is none. Raises RedisAway."""
        pieces: list[bytes] = []
        while not pieces or len(pieces[-1]) == PIECE_BYTES:
            at = len(pieces) * PIECE_BYTES
            pieces.append(await self._send("GETRANGE", key, at, at + PIECE_BYTES - 1))
        return b"".join(pieces)

    async def read_small(self, keys: Sequence[str]) -> list[bytes | None]:
        """Values that are a piece together; None where there is none. Raises RedisAway."""
        async with self._line:
            with away_is_one_error():
                answer: list[bytes | None] = await self._wire.command("MGET", *map(self._wire.keyspace.name, keys))
                return answer

    async def delete(self, key: str) -> None:
        await self._send("DEL", key)

    async def _send(self, command: str, key: str, *words: str | bytes | int) -> bytes:
        async with self._line:
            with away_is_one_error():
                answer: bytes = await self._wire.command(command, self._wire.keyspace.name(key), *words)
                return answer
