"""Bounds on bodies that are still arriving: how slowly they may come, and how much of them one client may hold."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.gateway.client_address import ClientAddresses
from server.gateway.problems import Kind, Problem
from server.process.interruption import Limit, Ticks

PROGRESS_BYTES = 10 * 1024
PROGRESS_SECONDS = 10.0
RETRY_AFTER = 5
ALL_HERE = "body_is_here"
"""In the state of a request whose body had been received to its end before anybody asked for it."""


class SlowBodies:
    """A layer of the app. Whoever reads a body through it gets a Problem: 408 without progress, 429 above the client's share.

    `budget`: bytes; one client address holds at most a quarter of them in bodies that have not ended. Whose a request is stands in its
    state as `client`.
    """

    def __init__(self, app: ASGIApp, budget: int, trusted_proxies: Sequence[str]) -> None:
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
        client = self._clients.of(scope)
        state = scope.setdefault("state", {})
        state["client"] = client
        if ALL_HERE in state:
            await self._app(scope, receive, send)
            return
        body = _Body(receive, self._ticks, self._held, client, self._share)
        try:
            await self._app(scope, body.receive, send)
        finally:
            body.release()


class _Body:
    """One body on its way."""

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
        """Of waiting until PROGRESS_BYTES must be there; time in which nobody reads does not count."""

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
        if self._own + nbytes > self._share:
            raise Problem(Kind.TOO_LARGE, f"the body is longer than {self._share} bytes, a quarter of OPSIN_QUEUE_MAX_BYTES")
        if self._held[self._client] + nbytes > self._share:
            detail = (
                f"unfinished bodies of one client ({self._client}) hold at most {self._share} bytes, a quarter of OPSIN_QUEUE_MAX_BYTES"
            )
            raise Problem(Kind.CLIENT_SHARE, detail, retry_after=RETRY_AFTER)
        self._held[self._client] += nbytes
        self._own += nbytes
        self._recent_bytes += nbytes
