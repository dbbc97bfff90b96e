"""Requests as routes read them: the head, parsed once; the body as it arrives; the client, and whether it is still connected."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from types import TracebackType
from typing import Protocol

from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope

from server.concurrency import AsyncCancelScope, TimerWheel
from server.http import sse
from server.http.problems import Problem, ProblemKind
from server.quote import quote

CLIENT_CLOSED_REQUEST = 499
"""Status that proxies log for a client that disconnected; the client itself never sees it."""
MAX_LENGTH_DIGITS = 19
"""Maximum number of digits of a length that is read; Python refuses to read thousands of them."""
MAX_TIMEOUT = 3600.0
MIN_TIMEOUT = 0.001
MAX_IDEMPOTENCY_KEY_CHARS = 256
RESPOND_ASYNC = "respond-async"
WEBHOOK_URL, WEBHOOK_EVENTS = "X-Webhook-URL", "X-Webhook-Events"
WATCH_DELAY_S = 0.05
"""Delay until a request is watched for a disconnect: most are answered within it."""
IPV6_PREFIX = 64
"""Size of the network of one subscriber, who may use any of its addresses."""


class BodyReservation(Protocol):
    """A reservation that grows while a body arrives."""

    items: int
    nbytes: int

    async def resize(self, items: int, nbytes: int) -> None: ...


@dataclass(frozen=True)
class Head:
    """The head of a request. Values are checked by the methods that return them, which keeps the order of refusals."""

    path: str
    query: bytes
    _headers: Mapping[bytes, Sequence[bytes]]
    """Values by name in lower case, as servers pass them on."""
    peer: str = ""
    """Host at the other end of the connection; empty for a Unix socket."""

    @staticmethod
    def parse(path: str, headers: Iterable[tuple[bytes, bytes]], query: bytes = b"", peer: str = "") -> Head:
        by_name: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            by_name.setdefault(name, []).append(value)
        return Head(path, query, by_name, peer)

    def raw(self, name: bytes) -> Sequence[bytes]:
        return self._headers.get(name, ())

    def values(self, name: bytes) -> list[str]:
        return [value.decode("latin-1") for value in self.raw(name)]

    def first(self, name: bytes) -> str | None:
        values = self._headers.get(name)
        return None if values is None else values[0].decode("latin-1")

    @cached_property
    def media_type(self) -> str:
        """Content-Type without parameters, in lower case. Empty: not sent."""
        return (self.first(b"content-type") or "").partition(";")[0].strip().lower()

    @cached_property
    def content_length(self) -> int | None:
        """Content-Length in bytes. None: the body is chunked."""
        text = self.first(b"content-length")
        return None if text is None else int(text.lstrip("0")[:MAX_LENGTH_DIGITS] or "0")  # the HTTP parser lets only digits through

    @cached_property
    def prefers_async(self) -> bool:
        """Whether `Prefer` (RFC 7240) lists `respond-async`."""
        preferences = (preference for value in self.values(b"prefer") for preference in value.split(","))
        return any(preference.partition(";")[0].strip().lower() == RESPOND_ASYNC for preference in preferences)

    @cached_property
    def _ranges(self) -> Mapping[str, float]:
        """Weights by media range of `Accept`. Elements whose weight is not a number are ignored."""
        ranges = {}
        for element in (self.first(b"accept") or "").lower().split(","):
            media_range, *parameters = (text.strip() for text in element.split(";"))
            try:
                weight = float(next((text[2:] for text in parameters if text.startswith("q=")), "1"))
            except ValueError:
                weight = math.nan
            if math.isfinite(weight) and element.strip():
                ranges[media_range] = min(1.0, max(0.0, weight))
        return ranges

    def negotiate(self, offered: Sequence[str]) -> str:
        """Return the offered media type that `Accept` (RFC 9110, 12.5.1) gives the highest weight, the first of equal ones.

        Raises Problem (406) if it accepts none of them."""
        accept = self.first(b"accept")
        if accept is None or not accept.replace(",", "").strip():
            return offered[0]
        weights = [_weight(media_type, self._ranges) for media_type in offered]
        if max(weights) <= 0:
            raise Problem(ProblemKind.NOT_ACCEPTABLE, f"{quote(accept)}: the answer is offered as {', '.join(offered)}", "Accept")
        return offered[weights.index(max(weights))]

    def wants_events(self, media_types: Sequence[str]) -> bool:
        """Return whether `Accept` prefers a stream of events to answers of these media types."""
        accept = self.first(b"accept")
        if accept is None or sse.MEDIA_TYPE not in accept.lower():
            return False
        return self.negotiate((*media_types, sse.MEDIA_TYPE)) == sse.MEDIA_TYPE

    def idempotency_key(self) -> str:
        """Return `Idempotency-Key`. Empty: not sent. Raises Problem (422)."""
        keys = self.values(b"idempotency-key")
        if not keys:
            return ""
        if len(keys) > 1:
            raise Problem(ProblemKind.INVALID_OPTION, f"given {len(keys)} times; send one", "Idempotency-Key")
        if not 0 < len(keys[0]) <= MAX_IDEMPOTENCY_KEY_CHARS:
            raise Problem(ProblemKind.INVALID_OPTION, f"use 1 to {MAX_IDEMPOTENCY_KEY_CHARS} characters", "Idempotency-Key")
        return keys[0]

    def webhook(self) -> tuple[str | None, str | None]:
        """Return `X-Webhook-URL` and `X-Webhook-Events`. Raises Problem (422) if one was sent twice."""
        urls, events = self.raw(b"x-webhook-url"), self.raw(b"x-webhook-events")
        if len(urls) > 1 or len(events) > 1:
            raise Problem(ProblemKind.INVALID_OPTION, "given twice", WEBHOOK_URL if len(urls) > 1 else WEBHOOK_EVENTS)
        return urls[0].decode("latin-1") if urls else None, events[0].decode("latin-1") if events else None

    def refuse_webhook(self) -> None:
        """Refuse webhook headers of a request that is not asynchronous. Raises Problem (422)."""
        for name, value in zip((WEBHOOK_URL, WEBHOOK_EVENTS), self.webhook(), strict=True):
            if value is not None:
                raise Problem(ProblemKind.INVALID_OPTION, f"only requests with `Prefer: {RESPOND_ASYNC}` are called back", name)

    def timeout_s(self, default: float, maximum: float = MAX_TIMEOUT) -> float:
        """Return `X-Request-Timeout`. Raises Problem (422)."""
        text = self.first(b"x-request-timeout")
        if text is None:
            return default
        try:
            seconds = math.nan if "_" in text else float(text)  # Python would read 1_0 as 10
        except ValueError:
            seconds = math.nan
        if not MIN_TIMEOUT <= seconds <= maximum:  # false for NaN, too
            raise Problem(
                ProblemKind.INVALID_OPTION, f"{quote(text)}: use seconds from {MIN_TIMEOUT:g} to {maximum:g}", "X-Request-Timeout"
            )
        return seconds


def _weight(media_type: str, ranges: Mapping[str, float]) -> float:
    """Return the weight of the most specific range that matches."""
    for media_range in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        if media_range in ranges:
            return ranges[media_range]
    return 0.0


async def iter_body(receive: Receive, limit: int, reservation: BodyReservation) -> AsyncIterator[bytes]:
    """Yield the body as it arrives; the reservation grows with it.

    Raises Problem (413) as soon as it is longer than `limit` bytes, what the reservation raises, and ClientDisconnect.
    """
    received, has_more = 0, True
    while has_more:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        chunk, has_more = message.get("body", b""), message.get("more_body", False)
        received += len(chunk)
        if received > limit:
            raise body_too_large(limit)
        if received > reservation.nbytes:
            await reservation.resize(reservation.items, received)
        if chunk:
            yield chunk


async def read_body(receive: Receive, limit: int, reservation: BodyReservation) -> bytes:
    """Return the whole body. Raises what `iter_body` does."""
    chunks = iter_body(receive, limit, reservation)
    first, received = await anext(chunks, b""), bytearray()
    async for chunk in chunks:
        received = received or bytearray(first)
        received += chunk
    return bytes(received) if received else first  # most bodies have arrived in one chunk


async def read_small_body(chunks: AsyncIterator[bytes], limit: int) -> bytes:
    """Return a body that is read without a reservation. Raises Problem (413) above `limit` bytes."""
    received = bytearray()
    async for chunk in chunks:
        received += chunk
        if len(received) > limit:
            raise Problem(ProblemKind.TOO_LARGE, f"the body is longer than {limit} bytes")
    return bytes(received)


def body_too_large(limit: int) -> Problem:
    return Problem(ProblemKind.TOO_LARGE, f"the body is longer than {limit} bytes (OPSIN_MAX_BODY_BYTES)")


def allowed_methods(routes: Iterable[BaseRoute], scope: Scope) -> set[str]:
    """Return the methods that these routes answer at the path of a request, none of which answers its own."""
    others = (route for route in routes if isinstance(route, Route) and route.matches(scope)[0] is Match.PARTIAL)
    return {method for route in others for method in route.methods or ()}


@dataclass(eq=False, slots=True)
class DisconnectWatcher:
    """Context manager that ends an interruption with ClientDisconnect when the client disconnects.

    The body must have been read."""

    _ticks: TimerWheel
    _receive: Receive
    _interruption: AsyncCancelScope
    _tick: int = -1
    _watcher: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._tick = self._ticks.add(self, WATCH_DELAY_S)

    def stop(self) -> None:
        self._ticks.remove(self, self._tick)
        if self._watcher is not None:
            self._watcher.cancel()

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def due(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._interruption.end(ClientDisconnect())


class ClientResolver:
    """Identifies clients by address: the connection's, or the one that trusted proxies wrote into X-Forwarded-For."""

    def __init__(self, trusted_proxies: Sequence[str]) -> None:
        self._trusted: list[IPv4Network | IPv6Network] = [ip_network(proxy, strict=False) for proxy in trusted_proxies]

    def find(self, host: str, forwarded: Sequence[str]) -> str:
        """Return the client's network; empty for a Unix socket.

        host: the connection's. forwarded: values of X-Forwarded-For."""
        if not self._trusted:
            return client_network(host)
        hops = [hop for value in forwarded for hop in value.split(",")]
        nearest = _parse(host)
        while nearest is not None and self._trusts(nearest) and hops:
            farther = _parse(hops.pop())
            if farther is None:
                break  # the addresses before it cannot be trusted either
            nearest = farther
        return _network(nearest, host)

    def is_proxy(self, host: str) -> bool:
        address = _parse(host)
        return address is not None and self._trusts(address)

    def _trusts(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._trusted)


@lru_cache(maxsize=1024)
def owner_id(client: str) -> str:
    """Return the pseudonym of a client in the queue; empty for an unknown client."""
    return hashlib.blake2b(client.encode(), digest_size=8).hexdigest() if client else ""


@lru_cache(maxsize=1024)
def client_network(host: str) -> str:
    """Return the network of the subscriber behind an address."""
    return _network(_parse(host), host)


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    """Parse an address of a header: with or without a port; IPv6 in brackets if there is one. Return None if it is not an address."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _network(address: IPv4Address | IPv6Address | None, host: str) -> str:
    if isinstance(address, IPv6Address):
        return str(IPv6Network((address, IPV6_PREFIX), strict=False))
    return host if address is None else str(address)


_PARAMETER = re.compile(r"""[ \t]*;[ \t]*(?:(?P<name>[^\s;="]+)=(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<token>[^\s;"]*)))?""")
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
"""RFC 2046, 5.1.1."""


def boundary_of(content_types: list[str]) -> bytes:
    """Return the boundary that the values of Content-Type name. Raises Problem (400) unless it is exactly one: a proxy or filter could
    otherwise read another form than the server."""
    if len(content_types) != 1:
        raise _refusal(f"given {len(content_types)} times")
    text = content_types[0].rstrip(" \t")
    position, boundaries = (text + ";").index(";"), []
    while position < len(text):
        parameter = _PARAMETER.match(text, position)
        if parameter is None:
            raise _refusal("its parameters cannot be read")
        if (parameter["name"] or "").lower().partition("*")[0] == "boundary":
            boundaries.append(parameter)
        position = parameter.end()
    if not boundaries:
        raise _refusal("no boundary")
    if len(boundaries) > 1:
        raise _refusal(f"{len(boundaries)} boundaries")
    if "*" in boundaries[0]["name"]:
        raise _refusal("`boundary*` means nothing in HTTP")
    boundary = boundaries[0]["token"] if boundaries[0]["quoted"] is None else re.sub(r"\\(.)", r"\1", boundaries[0]["quoted"])
    if not _BOUNDARY.fullmatch(boundary):
        raise _refusal("a boundary has 1 to 70 letters, digits or '()+_,-./:=? and spaces, of which none is the last")
    return boundary.encode()


def _refusal(reason: str) -> Problem:
    detail = f"{reason}: a multipart body needs one boundary; let your HTTP client write this header"
    return Problem(ProblemKind.INVALID_BODY, detail, "Content-Type")
