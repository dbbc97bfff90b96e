"""Request bodies as they arrive: read in pieces, with a limit, while the reservation follows."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request

from server.gateway.head import header
from server.gateway.problems import Kind, Problem
from server.queue.dispatch import Reservation

MOST_DIGITS = 19
"""Of a length that means anything; Python refuses to read thousands of them."""


def declared_length(request: Request) -> int | None:
    """Content-Length; None for a chunked body."""
    text = header(request, b"content-length")
    return None if text is None else int(text.lstrip("0")[:MOST_DIGITS] or "0")  # the HTTP parser lets only digits through


async def stream(request: Request, limit: int, reservation: Reservation) -> AsyncIterator[bytes]:
    """The body in pieces; the reservation grows with it.

    Raises Problem (413) as soon as it is longer than `limit` bytes, QueueFull, and ClientDisconnect if the client goes away.
    """
    received, more = 0, True
    while more:
        piece, more = await _next(request)
        received += len(piece)
        await _make_room(received, limit, reservation)
        if piece:
            yield piece


async def read(request: Request, limit: int, reservation: Reservation) -> bytes:
    """The whole body. Raises what `stream` does."""
    body, more = await _next(request)  # most are here by now
    await _make_room(len(body), limit, reservation)
    if not more:
        return body
    received = bytearray(body)
    while more:
        piece, more = await _next(request)
        received += piece
        await _make_room(len(received), limit, reservation)
    return bytes(received)


async def _next(request: Request) -> tuple[bytes, bool]:
    """The next piece of the body, and whether more follow."""
    message = await request.receive()
    if message["type"] != "http.request":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


async def _make_room(received: int, limit: int, reservation: Reservation) -> None:
    if received > limit:
        raise too_large(limit)
    if received > reservation.nbytes:
        await reservation.resize(reservation.items, received)


async def read_small(request: Request, limit: int) -> bytes:
    """A body that takes no room in the queue. Raises Problem (413) above `limit` bytes."""
    received = bytearray()
    async for piece in request.stream():
        received += piece
        if len(received) > limit:
            raise Problem(Kind.TOO_LARGE, f"the body is longer than {limit} bytes")
    return bytes(received)


def too_large(limit: int) -> Problem:
    return Problem(Kind.TOO_LARGE, f"the body is longer than {limit} bytes (OPSIN_MAX_BODY_BYTES)")
