"""The outermost layer of the gateway. Every request gets an id and its client's name here, its body is bounded while it arrives, and every
fault of ours gets a log line and a problem document."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.clients import ClientAddresses
from server.http.problems import Kind, Problem
from server.process.interruption import Limit, Ticks
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

    Whoever reads a body through it gets a Problem: 408 without progress, 429 above the client's share.
    """

    def __init__(self, app: ASGIApp, budget: int, trusted_proxies: Sequence[str]) -> None:
        """budget: bytes; one client address holds at most a quarter of them in bodies that have not ended."""
        self._app = app
        self._share = budget // 4
        self._clients = ClientAddresses(trusted_proxies)
        self._ticks = Ticks()
        self._held: Counter[str] = Counter()
        """Bytes of unfinished bodies by client."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = request_id = _request_id(scope)
        state["client"] = client = self._clients.of(scope)
        body = None if ALL_HERE in state else _Body(receive, self._ticks, self._held, client, self._share)
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


class _Body:
    """A body on its way."""

    def __init__(self, receive: Receive, ticks: Ticks, held: Counter[str], client: str, share: int) -> None:
        self._receive = receive
        self._ticks = ticks
        self._held = held
        self._client = client
        self._share = share
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
            self._held[self._client] -= self._own
            if not self._held[self._client]:
                del self._held[self._client]
            self._own = 0

    def _take(self, nbytes: int) -> None:
        share = f"{self._share} bytes, a quarter of OPSIN_QUEUE_MAX_BYTES"
        if self._own + nbytes > self._share:
            raise Problem(Kind.TOO_LARGE, f"the body is longer than {share}")
        if self._held[self._client] + nbytes > self._share:
            detail = f"unfinished bodies of one client ({self._client}) hold at most {share}"
            raise Problem(Kind.CLIENT_SHARE, detail, retry_after=RETRY_AFTER)
        self._held[self._client] += nbytes
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
