"""`/v2/repository`: which bundles there are, and loading and unloading them where the operator allows it."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from server.gateway import gateway, openapi_answers
from server.gateway.open_inference import model_control, repository
from server.gateway.open_inference.errors import invalid, json_response
from server.gateway.open_inference.routing import OpenInferenceRoute
from server.http.large_json import Outline
from server.http.requests import read_small

MAX_INDEX_BODY = 64 * 1024
"""Bytes; the body holds one boolean."""

router = APIRouter(prefix="/v2/repository", route_class=OpenInferenceRoute, tags=["Open Inference Protocol v2"])


@router.post("/index", summary="Every bundle and its state", openapi_extra=openapi_answers.INDEX)
async def index(request: Request) -> Response:
    content = await read_small(request, MAX_INDEX_BODY)
    Outline.of(content)  # raises what the decoder would take too long for
    try:
        wish = msgspec.json.decode(content) if content else {}
    except msgspec.DecodeError as error:
        raise invalid(f"failed to parse the request JSON: {error}") from error
    ready_only = isinstance(wish, dict) and wish.get("ready") is True
    return json_response(repository.index(await gateway.of(request).dispatcher.fleet(fresh=True), ready_only=ready_only))


@router.post("/models/{name}/load", summary="Load a bundle in every worker", openapi_extra=openapi_answers.LOAD)
async def load(request: Request, name: str) -> Response:
    here = gateway.of(request)
    model_control.check(request, here.settings)
    await repository.load(name, here.dispatcher)
    return json_response({})


@router.post("/models/{name}/unload", summary="Take a bundle out of service in every worker", openapi_extra=openapi_answers.UNLOAD)
async def unload(request: Request, name: str) -> Response:
    here = gateway.of(request)
    model_control.check(request, here.settings)
    await repository.unload(name, here.dispatcher)
    return json_response({})
