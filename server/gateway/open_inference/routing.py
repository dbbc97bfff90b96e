"""How the routes of the protocol answer when they fail."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from server.gateway.open_inference.errors import to_response
from server.http.problems import Kind, Problem
from server.queue.errors import RedisAway
from server.telemetry import logs

log = logs.get(__name__)


class OpenInferenceRoute(APIRoute):
    """Every failure of a route leaves in the protocol's error shape."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except ClientDisconnect:
                raise
            except Problem as problem:
                return to_response(problem)
            except RedisAway as away:
                return to_response(Problem(Kind.REDIS_AWAY, str(away), retry_after=away.retry_after))
            except Exception:
                request_id = request.state.request_id
                log.exception("request failed", request_id=request_id, method=request.method, path=request.scope["path"])
                return to_response(Problem(Kind.INTERNAL, f"something went wrong here; the log says more under {request_id}"))

        return answer
