"""Requests as routes read them: one header, the body as it arrives, and whether the client is still there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from server.http.problems import Kind, Problem
from server.process.interruption import Interruption, Ticks

CLIENT_CLOSED_REQUEST = 499
"""Nobody reads this status; it is what proxies log for a client that went away."""
MOST_DIGITS = 19
"""Digits of a length that means anything; Python refuses to read thousands of them."""
SHORT_WAIT = 0.05
"""Seconds. Most requests are answered within them; only then is it worth watching whether the client is still there."""


class BodyReservation(Protocol):
    """The place that a body takes while it arrives."""

    items: int
    nbytes: int

    async def resize(self, items: int, nbytes: int) -> None: ...


def header(request: Request, name: bytes) -> str | None:
    """The first header of this name, in lower case as servers hand it on. Starlette's mapping costs several times as much, for each of
    those that most requests lack."""
    for key, value in request.scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return None


def declared_length(request: Request) -> int | None:
    """Content-Length; None for a chunked body."""
    text = header(request, b"content-length")
    return None if text is None else int(text.lstrip("0")[:MOST_DIGITS] or "0")  # the HTTP parser lets only digits through


async def stream(request: Request, limit: int, reservation: BodyReservation) -> AsyncIterator[bytes]:
    """The body in pieces; the reservation grows with it.

    Raises Problem (413) as soon as it is longer than `limit` bytes, what the reservation raises, and ClientDisconnect if the client goes
    away.
    """
    received, more = 0, True
    while more:
        message = await request.receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        piece, more = message.get("body", b""), message.get("more_body", False)
        received += len(piece)
        if received > limit:
            raise too_large(limit)
        if received > reservation.nbytes:
            await reservation.resize(reservation.items, received)
        if piece:
            yield piece


async def read(request: Request, limit: int, reservation: BodyReservation) -> bytes:
    """The whole body. Raises what `stream` does."""
    received = bytearray()
    async for piece in stream(request, limit, reservation):
        received += piece
    return bytes(received)


async def read_small(request: Request, limit: int) -> bytes:
    """A body that is read without a reservation. Raises Problem (413) above `limit` bytes."""
    received = bytearray()
    async for piece in request.stream():
        received += piece
        if len(received) > limit:
            raise Problem(Kind.TOO_LARGE, f"the body is longer than {limit} bytes")
    return bytes(received)


def too_large(limit: int) -> Problem:
    return Problem(Kind.TOO_LARGE, f"the body is longer than {limit} bytes (OPSIN_MAX_BODY_BYTES)")


class ClientWatch:
    """`with ClientWatch(ticks, receive, interruption):` ends the interruption with ClientDisconnect when the client leaves.

    The body must have been read."""

    __slots__ = ("_interruption", "_receive", "_tick", "_ticks", "_watcher")

    def __init__(self, ticks: Ticks, receive: Receive, interruption: Interruption) -> None:
        self._ticks = ticks
        self._receive = receive
        self._interruption = interruption
        self._tick = -1
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._tick = self._ticks.add(self, SHORT_WAIT)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ticks.remove(self, self._tick)
        if self._watcher is not None:
            self._watcher.cancel()

    def due(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._interruption.end(ClientDisconnect())
