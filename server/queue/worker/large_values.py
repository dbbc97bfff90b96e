"""Large values in Redis as a worker reads and writes them, in pieces (see `server.queue.gateway.large_values`)."""

from __future__ import annotations

from server.queue.resp import CHUNK_BYTES, VALUE_TTL_MS
from server.queue.script import Script
from server.queue.worker.connection import WorkerRedisLink

WRITE_PIECE = Script("write_piece", tuple[str, int, int], bytes)


def read(link: WorkerRedisLink, key: str) -> bytes:
    """Return the value; empty if there is none. Raises RedisUnavailable."""
    pieces: list[bytes] = []
    while not pieces or len(pieces[-1]) == CHUNK_BYTES:
        at = len(pieces) * CHUNK_BYTES
        pieces.append(link.command("GETRANGE", link.name(key), at, at + CHUNK_BYTES - 1))
    return b"".join(pieces)


def write(link: WorkerRedisLink, key: str, data: bytes) -> None:
    """Write for the link's `retry_timeout`, then raise RedisUnavailable. A chunk may be written twice."""
    for at in range(0, len(data), CHUNK_BYTES):
        piece = data[at : at + CHUNK_BYTES]
        link.retry(lambda at=at, piece=piece: link.run(WRITE_PIECE, (key, at, VALUE_TTL_MS), [piece]))  # type: ignore[misc]
