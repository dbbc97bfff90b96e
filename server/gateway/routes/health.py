"""Whether the process runs, and whether it can take requests. Both answer at once, whatever is broken."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from server.gateway import gateway

router = APIRouter(tags=["health"])


@router.get("/health/live", summary="Does the process run?")
async def live() -> Response:
    return JSONResponse({"live": True})


@router.get(
    "/health/ready",
    summary="Can requests be answered?",
    description="200 when Redis answers and a ready worker exists for every default model, else 503 with the reason.",
    responses={
        503: {"description": "Not ready", "content": {"application/json": {"example": {"ready": False, "detail": "no worker is ready"}}}}
    },
)
async def ready(request: Request) -> Response:
    here = gateway.of(request)
    reason = "draining" if here.admission.draining else await here.directory.why_not_ready()
    if reason is None:
        return JSONResponse({"ready": True})
    return JSONResponse({"ready": False, "detail": reason}, status_code=503)
