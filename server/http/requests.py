"""Requests as routes read them: how the answer is wanted, the body as it arrives, and whether the client is still there."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope

from server.concurrency.cancellation import Interruption, Ticks
from server.http import sse
from server.http.problems import Kind, Problem
from server.quoting import quoted

CLIENT_CLOSED_REQUEST = 499
"""Nobody reads this status; it is what proxies log for a client that went away."""
MOST_DIGITS = 19
"""Digits of a length that means anything; Python refuses to read thousands of them."""
MAX_TIMEOUT = 3600.0
MIN_TIMEOUT = 0.001
MAX_KEY = 256
PREFERENCE = "respond-async"
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


def choose(accept: str | None, offered: Sequence[str]) -> str:
    """The offered type that `Accept` (RFC 9110, 12.5.1) gives the highest weight, of equal ones the first.

    Raises Problem (406) where none is accepted."""
    elements = [element for element in (accept or "").lower().split(",") if element.strip()]
    if not elements:
        return offered[0]
    ranges = _ranges(elements)
    weights = {media_type: _weight(media_type, ranges) for media_type in offered}
    best = max(offered, key=lambda media_type: weights[media_type])
    if weights[best] <= 0:
        raise Problem(Kind.NOT_ACCEPTABLE, f"{quoted(accept)}: the answer is offered as {', '.join(offered)}", "Accept")
    return best


def _ranges(elements: Sequence[str]) -> dict[str, float]:
    """Media range → weight. An element whose weight is no number is ignored."""
    ranges = {}
    for element in elements:
        media_range, *parameters = (text.strip() for text in element.split(";"))
        try:
            weight = float(next((text[2:] for text in parameters if text.startswith("q=")), "1"))
        except ValueError:
            weight = math.nan
        if math.isfinite(weight):
            ranges[media_range] = min(1.0, max(0.0, weight))
    return ranges


def _weight(media_type: str, ranges: dict[str, float]) -> float:
    """By the most specific range that matches."""
    for media_range in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        if media_range in ranges:
            return ranges[media_range]
    return 0.0


def is_asynchronous(request: Request) -> bool:
    """`Prefer: respond-async` (RFC 7240), whatever else is preferred beside it."""
    lines = (value.decode("latin-1") for name, value in request.scope["headers"] if name == b"prefer")
    return any(one.partition(";")[0].strip().lower() == PREFERENCE for line in lines for one in line.split(","))


def wants_events(request: Request, media_types: Sequence[str]) -> bool:
    """Whether `Accept` puts a stream of events before every other answer."""
    accept = header(request, b"accept")
    if accept is None or sse.MEDIA_TYPE not in accept.lower():
        return False
    return choose(accept, (*media_types, sse.MEDIA_TYPE)) == sse.MEDIA_TYPE


def idempotency_key(request: Request) -> str:
    """Empty: there is none. Raises Problem (422)."""
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return ""
    if len(keys) > 1:
        raise Problem(Kind.INVALID_OPTION, f"given {len(keys)} times; send one", "Idempotency-Key")
    (key,) = keys
    if not 0 < len(key) <= MAX_KEY:
        raise Problem(Kind.INVALID_OPTION, f"use 1 to {MAX_KEY} characters", "Idempotency-Key")
    return key


def read_timeout(request: Request, default: float, most: float = MAX_TIMEOUT) -> float:
    """`X-Request-Timeout` in seconds. Raises Problem (422)."""
    text = header(request, b"x-request-timeout")
    if text is None:
        return default
    try:
        seconds = math.nan if "_" in text else float(text)  # Python would read 1_0 as 10
    except ValueError:
        seconds = math.nan
    if not MIN_TIMEOUT <= seconds <= most:  # false for NaN, too
        raise Problem(Kind.INVALID_OPTION, f"{quoted(text)}: use seconds from {MIN_TIMEOUT:g} to {most:g}", "X-Request-Timeout")
    return seconds


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
    pieces = stream(request, limit, reservation)
    first, received = await anext(pieces, b""), bytearray()
    async for piece in pieces:
        received = received or bytearray(first)
        received += piece
    return bytes(received) if received else first  # most bodies are here in one piece by now


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


def methods_at(routes: Iterable[BaseRoute], scope: Scope) -> set[str]:
    """Methods that these routes answer at the path of a request, where none answers its own."""
    others = (route for route in routes if isinstance(route, Route) and route.matches(scope)[0] is Match.PARTIAL)
    return {method for route in others for method in route.methods or ()}


@dataclass(eq=False, slots=True)
class ClientWatch:
    """`with ClientWatch(ticks, receive, interruption):` ends the interruption with ClientDisconnect when the client leaves.

    The body must have been read."""

    _ticks: Ticks
    _receive: Receive
    _interruption: Interruption
    _tick: int = -1
    _watcher: asyncio.Task[None] | None = None

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
