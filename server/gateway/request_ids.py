"""The outermost layer of the gateway: a request id for every request, and a log line and a problem document for every fault of ours."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.gateway.problems import Kind, Problem
from server.telemetry import logs

HEADER = b"x-request-id"
UNSAFE = re.compile(r"[^A-Za-z0-9._:/+=@-]")
MAX_LENGTH = 128
PIECE = 256 * 1024
"""Bytes of a body that are handed to the connection at a time."""

log = logs.get(__name__)


class RequestIds:
    """Puts `request_id` into the request's state and `X-Request-ID` into every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
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
            await self._app(scope, receive, send_with_id)
        except Exception:
            log.exception("request failed", request_id=request_id, method=scope["method"], path=scope["path"])
            if ended:  # it has been answered like any other
                return
            if started:
                raise
            await our_fault().to_response(request_id)(scope, receive, send_with_id)


def _pieces(message: Message) -> Iterable[Message]:
    """A large body in pieces: the connection copies what its client has not read yet, which for all of it at once holds everybody up."""
    body = message.get("body", b"")
    if len(body) <= PIECE:
        return (message,)
    view, more = memoryview(body), message.get("more_body", False)
    starts = range(0, len(body), PIECE)
    return ({**message, "body": view[start : start + PIECE], "more_body": more or start != starts[-1]} for start in starts)


def our_fault() -> Problem:
    """What a client is told of an exception that nobody has foreseen."""
    return Problem(Kind.INTERNAL, "something went wrong here; the log says more under this request id")


def _request_id(scope: Scope) -> str:
    """The client's id without what does not belong into a log line or a header, or a new one."""
    given = next((value for name, value in scope["headers"] if name == HEADER), b"")
    return UNSAFE.sub("", given.decode("latin-1"))[:MAX_LENGTH] or os.urandom(16).hex()
