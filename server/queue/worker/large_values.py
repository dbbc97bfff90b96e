"""Large values in Redis as a worker reads and writes them, in pieces (see `server.queue.gateway.large_values`)."""

from __future__ import annotations

from server.queue.resp import PIECE_BYTES, STORED_MS
from server.queue.script import Script
from server.queue.worker.connection import Link

WRITE_PIECE = Script("write_piece", tuple[str, int, int], bytes)


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
        link.patiently(lambda at=at, piece=piece: link.run(WRITE_PIECE, (key, at, STORED_MS), [piece]))  # type: ignore[misc]
