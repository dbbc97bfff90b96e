"""Middleware that every request passes before it reaches its route."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.concurrency import ClientBound, Deadline, TimerWheel
from server.http.problems import Problem, ProblemKind
from server.http.requests import ClientResolver, Head, client_network
from server.http.sse import CHUNK_BYTES
from server.telemetry import logs
from server.telemetry.tracing import Tracer

REQUEST_ID_HEADER = b"x-request-id"
UNSAFE_ID_CHARS = re.compile(r"[^A-Za-z0-9._:/+=@-]")
MAX_ID_CHARS = 128
MIN_PROGRESS_BYTES = 10 * 1024
PROGRESS_WINDOW_S = 10.0
RETRY_AFTER = 5
BODY_COMPLETE = "body_complete"
"""Key in the state of a request whose whole body was received before its first byte was read."""

log = logs.get(__name__)


class RequestMiddleware:
    """Puts `request_id`, `client` and `api_key` into the state of a request, and `X-Request-ID` into its response.

    Reading a body through it raises Problem: 408 without progress, 429 above the client's share. Faults of the service are logged and
    answered with a problem document. Requests of one forwarded address beyond a quarter of `connections` get 429; requests from elsewhere
    than a trusted proxy, and the proxy's own, are bounded by their connection.
    """

    def __init__(
        self,
        app: ASGIApp,
        routes: Sequence[Route],
        *,
        body_bytes: int,
        connections: int,
        trusted_proxies: Sequence[str],
        state: Mapping[str, Any],
        authenticate: Callable[[Scope], None] | None,
        refuse: Callable[[Problem, Scope], Response],
        wrap: Callable[[ASGIApp], ASGIApp] | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """routes: of POSTs, ahead of FastAPI's own middleware, which took two fifths of the time of a cheap request; they answer with
        problem documents themselves. body_bytes: memory for unfinished bodies, of which one client may take a quarter. state: values in
        the state of every request. authenticate: identifies the client; raises Problem. refuse: makes the response of a request that is
        refused here. wrap: adds middleware between request ids and refusals."""
        self._app = app
        self._exact: dict[str, ASGIApp] = {route.path: route.app for route in routes if "{" not in route.path}
        self._patterns = [route for route in routes if "{" in route.path]
        self._addresses = ClientResolver(trusted_proxies)
        self._timers = TimerWheel()
        self._bodies = ClientBound(each=body_bytes // 4)
        self._forwarded = ClientBound(each=max(1, connections // 4)) if trusted_proxies else None
        self._state = state
        self._authenticate = authenticate
        self._refuse = refuse
        self._tracer = tracer
        self._inner = self._enter if wrap is None else wrap(self._enter)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        peer, _ = scope.get("client") or ("", 0)
        head = Head.parse(scope["path"], scope["headers"], scope.get("query_string", b""), peer)
        state = scope.setdefault("state", {})
        state["head"] = head
        state["request_id"] = request_id = _request_id(head)
        state["client"] = client = self._addresses.find(head.peer, head.values(b"x-forwarded-for"))
        state.update(self._state)
        body = None if BODY_COMPLETE in state else _BoundedBody(receive, self._timers, self._bodies, client)
        trace = None if self._tracer is None else self._tracer.start_request(head.path, head.raw(b"traceparent"))
        state["trace"] = trace
        status, ended = 0, False  # status: of a response that has started

        async def send_with_id(message: Message) -> None:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (REQUEST_ID_HEADER, request_id.encode())]
            ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            for piece in _split_body(message):
                await send(piece)

        try:
            await self._inner(scope, receive if body is None else body.receive, send_with_id)
        except Exception:
            log.exception("request failed", request_id=request_id, method=scope["method"], path=scope["path"])
            if ended:  # it has been answered like any other
                return
            if status:
                raise
            await internal_error().to_response(request_id)(scope, receive, send_with_id)
        finally:
            if body is not None:
                body.release()
            if trace is not None:
                route = scope.get("route")
                trace.end(scope, head.path if head.path in self._exact else getattr(route, "path", None), status)

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        client: str = scope["state"]["client"]
        bound = self._bound_of(scope["state"]["head"], client)
        try:
            if bound is not None and bound.exceeded_bound(client, 1):
                detail = f"one client ({client}) has at most {bound.each} requests in flight, a quarter of OPSIN_MAX_CONNECTIONS"
                raise Problem(ProblemKind.CLIENT_QUOTA, detail, retry_after=RETRY_AFTER)
            if self._authenticate is not None:
                self._authenticate(scope)
        except Problem as problem:
            await self._refuse(problem, scope)(scope, receive, send)
            return
        if bound is not None:
            bound.take(client, 1)
        try:
            await self._route_of(scope)(scope, receive, send)
        finally:
            if bound is not None:
                bound.give(client, 1)

    def _route_of(self, scope: Scope) -> ASGIApp:
        if scope["method"] != "POST":
            return self._app
        scope["app"] = self._app  # as FastAPI does: routes find their gateway through it
        if scope["path"] in self._exact:
            return self._exact[scope["path"]]
        for route in self._patterns:
            match, found = route.matches(scope)
            if match is Match.FULL:
                scope.update(found, route=route)
                return route.app
        return self._app

    def _bound_of(self, head: Head, client: str) -> ClientBound | None:
        """Return the bound on requests that a proxy forwarded. None: the request did not come through a proxy."""
        if self._forwarded is None or not self._addresses.is_proxy(head.peer) or client == client_network(head.peer):
            return None
        return self._forwarded


class _BoundedBody:
    """A body that is being received."""

    def __init__(self, receive: Receive, timers: TimerWheel, bodies: ClientBound, client: str) -> None:
        self._receive = receive
        self._timers = timers
        self._bodies = bodies
        self._client = client
        self._held_bytes = 0
        self._ended = False
        self._recent_bytes = 0
        self._seconds_left = PROGRESS_WINDOW_S
        """Waiting time left until MIN_PROGRESS_BYTES must have arrived; time in which the body is not read does not count."""

    async def receive(self) -> Message:
        if self._ended:
            return await self._receive()
        started_at = time.monotonic()
        try:
            with Deadline(self._timers, self._seconds_left):
                message = await self._receive()
        except TimeoutError:
            detail = f"the body has brought less than {MIN_PROGRESS_BYTES} bytes in {PROGRESS_WINDOW_S:g} s"
            raise Problem(ProblemKind.TOO_SLOW, detail) from None
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._ended = True
            self.release()
            return message
        self._take(len(message.get("body", b"")))
        self._seconds_left -= time.monotonic() - started_at
        if self._recent_bytes >= MIN_PROGRESS_BYTES:
            self._recent_bytes, self._seconds_left = 0, PROGRESS_WINDOW_S
        return message

    def release(self) -> None:
        """Give back the client's share. Idempotent."""
        if self._held_bytes:
            self._bodies.give(self._client, self._held_bytes)
            self._held_bytes = 0

    def _take(self, nbytes: int) -> None:
        share = f"{self._bodies.each} bytes, a quarter of OPSIN_QUEUE_MAX_BYTES"
        if self._held_bytes + nbytes > self._bodies.each:
            raise Problem(ProblemKind.TOO_LARGE, f"the body is longer than {share}")
        if self._bodies.exceeded_bound(self._client, nbytes):
            detail = f"unfinished bodies of one client ({self._client}) hold at most {share}"
            raise Problem(ProblemKind.CLIENT_QUOTA, detail, retry_after=RETRY_AFTER)
        self._bodies.take(self._client, nbytes)
        self._held_bytes += nbytes
        self._recent_bytes += nbytes


def internal_error() -> Problem:
    """Return the problem that clients get for an unforeseen exception."""
    return Problem(ProblemKind.INTERNAL, "internal error; see the service's log for this request ID")


def _split_body(message: Message) -> Iterable[Message]:
    """Split a large body: the connection copies what its client has not read yet, and copying all of it blocks the event loop."""
    body = message.get("body", b"")
    if len(body) <= CHUNK_BYTES:
        return (message,)
    view, has_more = memoryview(body), message.get("more_body", False)
    starts = range(0, len(body), CHUNK_BYTES)
    return ({**message, "body": view[start : start + CHUNK_BYTES], "more_body": has_more or start != starts[-1]} for start in starts)


def _request_id(head: Head) -> str:
    """Return the client's id without characters that are unsafe in a log line or a header, or a new one."""
    return UNSAFE_ID_CHARS.sub("", head.first(REQUEST_ID_HEADER) or "")[:MAX_ID_CHARS] or os.urandom(16).hex()
