"""Large values in Redis, read and written by workers in pieces: over a slow link each piece arrives long before Redis counts as away."""

from __future__ import annotations

from server.queue.link import Link

PIECE_BYTES = 256 * 1024
"""Also the largest argument that a script is given: Redis stands still while it reads one."""
STORED_MS = 120_000
"""How long a value outlives its last piece: an output is read at once or by nobody, a message is taken over by the queue."""


def read(link: Link, key: str) -> bytes:
    """The value; empty if there is none. Raises RedisAway."""
    pieces: list[bytes] = []
    while not pieces or len(pieces[-1]) == PIECE_BYTES:
        at = len(pieces) * PIECE_BYTES
        pieces.append(link.command("GETRANGE", key, at, at + PIECE_BYTES - 1))
    return b"".join(pieces)


def write(link: Link, key: str, data: bytes) -> None:
    """Keeps trying for the link's patience, since nobody else has the value; then RedisAway. A piece may be written twice."""
    for at in range(0, len(data), PIECE_BYTES):
        piece = data[at : at + PIECE_BYTES]
        link.patiently(lambda at=at, piece=piece: link.script("write_piece", key, at, piece, STORED_MS))  # type: ignore[misc]
