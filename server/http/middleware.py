"""Layers that every request passes, from the outermost one to the routes."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.concurrency.cancellation import Limit, Ticks
from server.concurrency.client_bound import ClientBound
from server.http.client_identity import ClientAddresses, peer_of, subscriber
from server.http.problems import Kind, Problem
from server.telemetry import logs

HEADER = b"x-request-id"
UNSAFE = re.compile(r"[^A-Za-z0-9._:/+=@-]")
MAX_LENGTH = 128
PIECE = 256 * 1024
"""Bytes of a body that are handed to the connection at a time."""
PROGRESS_BYTES = 10 * 1024
PROGRESS_SECONDS = 10.0
RETRY_AFTER = 5
ALL_HERE = "body_is_here"
"""In the state of a request whose body had been received to its end before anybody asked for it."""

log = logs.get(__name__)


class OutermostLayer:
    """Puts `request_id` and `client` into the request's state, and `X-Request-ID` into every response.

    Whoever reads a body through it gets a Problem: 408 without progress, 429 above the client's share. Every fault of ours gets a log line
    and a problem document.
    """

    def __init__(self, app: ASGIApp, budget: int, trusted_proxies: Sequence[str]) -> None:
        """budget: bytes; one client address holds at most a quarter of them in bodies that have not ended."""
        self._app = app
        self._clients = ClientAddresses(trusted_proxies)
        self._ticks = Ticks()
        self._bodies = ClientBound(each=budget // 4)
        """Bytes of unfinished bodies."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = request_id = _request_id(scope)
        state["client"] = client = self._clients.of(scope)
        body = None if ALL_HERE in state else _BoundedBody(receive, self._ticks, self._bodies, client)
        started = ended = False

        async def send_with_id(message: Message) -> None:
            nonlocal started, ended
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), (HEADER, request_id.encode())]
            ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            for piece in _pieces(message):
                await send(piece)

        try:
            await self._app(scope, receive if body is None else body.receive, send_with_id)
        except Exception:
            log.exception("request failed", request_id=request_id, method=scope["method"], path=scope["path"])
            if ended:  # it has been answered like any other
                return
            if started:
                raise
            await our_fault().to_response(request_id)(scope, receive, send_with_id)
        finally:
            if body is not None:
                body.release()


class _BoundedBody:
    """A body on its way."""

    def __init__(self, receive: Receive, ticks: Ticks, bodies: ClientBound, client: str) -> None:
        self._receive = receive
        self._ticks = ticks
        self._bodies = bodies
        self._client = client
        self._own = 0
        self._ended = False
        self._recent_bytes = 0
        self._seconds_left = PROGRESS_SECONDS
        """Time of waiting until PROGRESS_BYTES must be there; time in which nobody reads does not count."""

    async def receive(self) -> Message:
        if self._ended:
            return await self._receive()
        began = time.monotonic()
        try:
            with Limit(self._ticks, self._seconds_left):
                message = await self._receive()
        except TimeoutError:
            detail = f"the body has brought less than {PROGRESS_BYTES} bytes in {PROGRESS_SECONDS:g} s"
            raise Problem(Kind.TOO_SLOW, detail) from None
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._ended = True
            self.release()
            return message
        self._take(len(message.get("body", b"")))
        self._seconds_left -= time.monotonic() - began
        if self._recent_bytes >= PROGRESS_BYTES:
            self._recent_bytes, self._seconds_left = 0, PROGRESS_SECONDS
        return message

    def release(self) -> None:
        """Idempotent."""
        if self._own:
            self._bodies.give(self._client, self._own)
            self._own = 0

    def _take(self, nbytes: int) -> None:
        share = f"{self._bodies.each} bytes, a quarter of OPSIN_QUEUE_MAX_BYTES"
        if self._own + nbytes > self._bodies.each:
            raise Problem(Kind.TOO_LARGE, f"the body is longer than {share}")
        if self._bodies.over(self._client, nbytes):
            detail = f"unfinished bodies of one client ({self._client}) hold at most {share}"
            raise Problem(Kind.CLIENT_SHARE, detail, retry_after=RETRY_AFTER)
        self._bodies.take(self._client, nbytes)
        self._own += nbytes
        self._recent_bytes += nbytes


def our_fault() -> Problem:
    """The problem that a client is told of an exception that nobody has foreseen."""
    return Problem(Kind.INTERNAL, "something went wrong here; the log says more under this request id")


def _pieces(message: Message) -> Iterable[Message]:
    """A large body in pieces: the connection copies what its client has not read yet, which for all of it at once holds everybody up."""
    body = message.get("body", b"")
    if len(body) <= PIECE:
        return (message,)
    view, more = memoryview(body), message.get("more_body", False)
    starts = range(0, len(body), PIECE)
    return ({**message, "body": view[start : start + PIECE], "more_body": more or start != starts[-1]} for start in starts)


def _request_id(scope: Scope) -> str:
    """The client's id without what does not belong into a log line or a header, or a new one."""
    given = next((value for name, value in scope["headers"] if name == HEADER), b"")
    return UNSAFE.sub("", given.decode("latin-1"))[:MAX_LENGTH] or os.urandom(16).hex()


class ForwardedRequests:
    """A layer of the app. Requests of one forwarded address beyond a quarter of `connections` get 429 before their bodies are read.

    It needs the `client` that the outermost layer puts into a request's state. What comes from elsewhere than a trusted proxy, or is sent
    by the proxy itself, is bounded by its connection.
    """

    def __init__(
        self, app: ASGIApp, connections: int, trusted_proxies: Sequence[str], refuse: Callable[[Problem, Scope], Response]
    ) -> None:
        """refuse: makes the response to a request that is one too many."""
        self._app = app
        self._addresses = ClientAddresses(trusted_proxies)
        self._refuse = refuse
        self._in_flight = ClientBound(each=max(1, connections // 4))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        peer = peer_of(scope)
        if scope["type"] != "http" or not self._addresses.is_proxy(peer) or scope["state"]["client"] == subscriber(peer):
            await self._app(scope, receive, send)
            return
        client = scope["state"]["client"]
        if self._in_flight.over(client, 1):
            detail = f"one client ({client}) has at most {self._in_flight.each} requests in flight, a quarter of OPSIN_MAX_CONNECTIONS"
            await self._refuse(Problem(Kind.CLIENT_SHARE, detail, retry_after=RETRY_AFTER), scope)(scope, receive, send)
            return
        self._in_flight.take(client, 1)
        try:
            await self._app(scope, receive, send)
        finally:
            self._in_flight.give(client, 1)


class HotRoutes:
    """The routes that serve inference, ahead of FastAPI's layers, which took two fifths of the time of a request that is cheap otherwise.

    POSTs that fit one of the `routes` go there; everything else goes to `app`. The routes answer with problem documents themselves.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[Route]) -> None:
        self._app = app
        self._exact: dict[str, ASGIApp] = {route.path: route.app for route in routes if "{" not in route.path}
        self._patterns = [route for route in routes if "{" in route.path]

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        target = self._app
        if scope["type"] == "http" and scope["method"] == "POST":
            scope["app"] = self._app  # as FastAPI does: it leads from a request to its gateway
            target = self._exact.get(scope["path"]) or self._matching(scope) or target
        return target(scope, receive, send)

    def _matching(self, scope: Scope) -> ASGIApp | None:
        for route in self._patterns:
            match, found = route.matches(scope)
            if match is Match.FULL:
                scope.update(found)
                return route.app
        return None
