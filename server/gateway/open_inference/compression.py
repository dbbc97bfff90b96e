"""gzip and deflate of `infer`, both ways. "deflate" is a zlib stream (RFC 1950), as HTTP and Triton's clients mean it."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Iterator

from server.gateway.open_inference.errors import invalid
from server.http.problems import Problem, ProblemKind
from server.queue.gateway.reservations import Reservation
from server.quote import quote

InTurn = Callable[[int, Callable[[], bytes | None]], Awaitable[bytes | None]]
"""A function that calls another one in its client's turn, given the size of the body."""

_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


PIECE = 1024 * 1024
"""Maximum size that is inflated at a time, once the queue has room for it."""


async def inflate(body: bytes, content_encoding: str, limit: int, reservation: Reservation, in_turn: InTurn) -> bytes:
    """Inflate a body, for which the reservation grows. Raises what `inflate_pieces` and the reservation raise."""
    if content_encoding.strip().lower() in ("", "identity"):
        return body
    inflated: list[bytes] = []
    size = 0
    stream = inflate_pieces(body, content_encoding, limit)
    while (piece := await in_turn(max(len(body), size), lambda: next(stream, None))) is not None:
        size += len(piece)
        await reservation.resize(reservation.items, max(reservation.nbytes, len(body) + size))
        inflated.append(piece)
    return b"".join(inflated)


def inflate_pieces(body: bytes, content_encoding: str, limit: int) -> Iterator[bytes]:
    """Yield the contents of a compressed body, at most `limit` bytes.

    Raises Problem: 501 for an unknown encoding, 400 for a damaged stream, 413 above the limit.
    """
    encoding = _supported_encoding(content_encoding)
    if encoding is None:
        raise Problem(ProblemKind.UNSUPPORTED_ENCODING, f"Content-Encoding {quote(content_encoding)} is not supported")
    stream = zlib.decompressobj(_WINDOW_BITS[encoding])
    rest, size = body, 0
    while True:
        try:
            piece = stream.decompress(rest, PIECE)
        except zlib.error as error:
            raise invalid(f"the body is not a valid {encoding} stream: {error}") from error
        if not piece:
            break
        size += len(piece)
        if size > limit:
            raise Problem(ProblemKind.TOO_LARGE, f"the decompressed body is above the limit of {limit} bytes (OPSIN_MAX_BODY_BYTES)")
        yield piece
        rest = stream.unconsumed_tail
    if not stream.eof:
        raise invalid(f"the body ends in the middle of its {encoding} stream")
    if stream.unused_data:
        raise invalid(f"{len(stream.unused_data)} bytes follow the end of the {encoding} stream")


def requested_encoding(accept_encoding: str | None) -> str | None:
    """Return the requested compression of the reply: only an `Accept-Encoding` that names one encoding counts.

    Triton's asyncio client sends `gzip, deflate, br` with every call, whether it can undo them or not.
    """
    return _supported_encoding(accept_encoding or "")


def compress(body: bytes, encoding: str) -> bytes:
    """Compress a body at level 1: float tensors hardly shrink at any level."""
    stream = zlib.compressobj(level=1, wbits=_WINDOW_BITS[encoding])
    return stream.compress(body) + stream.flush()


def _supported_encoding(name: str) -> str | None:
    encoding = name.strip().lower()
    return encoding if encoding in _WINDOW_BITS else None
