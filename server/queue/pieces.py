"""Large values in Redis, in pieces: over a slow link each piece arrives long before Redis counts as away, and the beat goes first.

`read` and `write` are a worker's, `Freight` is a gateway's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from server.queue.connect import away_is_one_error
from server.queue.link import Link
from server.queue.wire import AsyncWire

PIECE_BYTES = 256 * 1024
"""Also the largest argument that a script is given: Redis stands still while it reads one."""
STORED_MS = 120_000
"""How long a value outlives its last piece: an output is read at once or by nobody, a message is taken over by the queue."""


def read(link: Link, key: str) -> bytes:
    """The value; empty if there is none. Raises RedisAway."""
    pieces: list[bytes] = []
    while not pieces or len(pieces[-1]) == PIECE_BYTES:
        at = len(pieces) * PIECE_BYTES
        pieces.append(link.command("GETRANGE", link.name(key), at, at + PIECE_BYTES - 1))
    return b"".join(pieces)


def write(link: Link, key: str, data: bytes) -> None:
    """Keeps trying for the link's patience, since nobody else has the value; then RedisAway. A piece may be written twice."""
    for at in range(0, len(data), PIECE_BYTES):
        piece = data[at : at + PIECE_BYTES]
        link.patiently(lambda at=at, piece=piece: link.script("write_piece", key, at, piece, STORED_MS))  # type: ignore[misc]


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
