"""`GET /v1/status`: what an operator wants to see without Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.gateway import gateway, openapi_answers
from server.http.problems import Kind, Problem
from server.queue.errors import RedisAway

router = APIRouter(tags=["operation"])


@router.get("/v1/status", summary="The service now and in the last 15 minutes", openapi_extra=openapi_answers.STATUS)
async def status(request: Request) -> Response:
    try:
        document = await gateway.of(request).status.read()
    except RedisAway as error:
        raise Problem(Kind.REDIS_AWAY, str(error), retry_after=error.retry_after) from error
    return Response(document, media_type="application/json", headers={"Cache-Control": "no-store"})
