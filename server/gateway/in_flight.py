"""Requests that come through trusted proxies: one forwarded address has a share of them, as one client has of connections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from server.gateway.client_address import ClientAddresses
from server.gateway.open_inference.errors import to_response
from server.gateway.problems import Kind, Problem

RETRY_AFTER = 5


class ForwardedRequests:
    """A layer of the app. Requests of one forwarded address beyond a quarter of `connections` get 429 before their bodies are read.

    It needs the `client` that `SlowBodies` puts into a request's state. What comes from elsewhere than a trusted proxy, or is sent by the
    proxy itself, is bounded by its connection.
    """

    def __init__(self, app: ASGIApp, connections: int, trusted_proxies: Sequence[str], refused: Callable[[], object]) -> None:
        self._app = app
        self._most = max(1, connections // 4)
        self._addresses = ClientAddresses(trusted_proxies)
        self._refused = refused
        self._in_flight: Counter[str] = Counter()
        """By client."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._addresses.is_forwarded(scope):
            await self._app(scope, receive, send)
            return
        client = scope["state"]["client"]
        if self._in_flight[client] >= self._most:
            await self._refuse(client, scope, receive, send)
            return
        self._in_flight[client] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._in_flight[client] -= 1
            if not self._in_flight[client]:
                del self._in_flight[client]

    async def _refuse(self, client: str, scope: Scope, receive: Receive, send: Send) -> None:
        self._refused()
        detail = f"one client ({client}) has at most {self._most} requests in flight, a quarter of OPSIN_MAX_CONNECTIONS"
        problem = Problem(Kind.CLIENT_SHARE, detail, retry_after=RETRY_AFTER)
        protocol = scope["path"].startswith("/v2/")
        response = to_response(problem) if protocol else problem.to_response(scope["state"]["request_id"])
        await response(scope, receive, send)
