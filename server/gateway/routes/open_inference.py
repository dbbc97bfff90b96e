"""`/v2`: the Open Inference Protocol for clients of Triton and KServe. `docs/open-inference.md` describes it for users.

Content-Type and Accept of these clients mean nothing: some send none, some send `application/octet-stream` with JSON.
"""

from __future__ import annotations

import asyncio

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.routing import Route

from models.bundle import BundleSpec
from server.gateway import model_directory
from server.gateway.app_state import GatewayState, gateway_state
from server.gateway.open_inference import repository
from server.gateway.open_inference.errors import OpenInferenceRoute, invalid, json_response, to_response
from server.gateway.open_inference.protocol_model import (
    model_config,
    model_metadata,
    model_statistics,
    server_metadata,
    unknown_model,
    unloaded_model,
)
from server.gateway.openapi import responses
from server.gateway.routes.infer import INFER_PATHS, infer
from server.http.json_outline import JsonOutline
from server.http.problems import Problem, ProblemKind
from server.http.requests import allowed_methods, read_small_body
from server.queue.gateway.fleet import Fleet
from server.quote import MAX_QUOTED_CHARS

MAX_INDEX_BODY_BYTES = 64 * 1024
"""Maximum size of a body that holds one boolean."""
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]

router = APIRouter(prefix="/v2", route_class=OpenInferenceRoute, tags=["Open Inference Protocol v2"])


@router.get("", summary="Name, version and extensions of the server")
@router.get("/", include_in_schema=False)
async def metadata(request: Request) -> Response:
    return json_response(server_metadata(gateway_state(request).settings.model_control))


@router.get("/health/live", summary="Does the process run?")
async def live() -> Response:
    return json_response({"live": True})


@router.get("/health/ready", summary="Can requests be answered?", openapi_extra=responses.READY)
async def ready(request: Request) -> Response:
    reason = await gateway_state(request).not_ready_reason()
    return json_response({"ready": True}) if reason is None else json_response({"ready": False, "error": reason}, 503)


@router.get("/models", summary="Names of the models that are ready", openapi_extra=responses.SERVED)
async def models(request: Request) -> Response:
    entries = repository.index(await gateway_state(request).directory.fleet(), ready_only=True)
    return json_response({"models": sorted({entry["name"] for entry in entries})})


@router.get("/models/stats", summary="Statistics of all models", openapi_extra=responses.SERVED)
async def all_statistics(request: Request) -> Response:
    gateway = gateway_state(request)
    fleet = await gateway.directory.fleet()
    specs = [fleet.specs.get((entry["name"], entry["version"])) for entry in repository.index(fleet, ready_only=False)]
    return await _statistics(gateway, [spec for spec in specs if spec is not None])


@router.get("/models/{name}/stats", summary="Statistics of all versions of a model", openapi_extra=responses.VERSIONS)
@router.get("/models/{name}/versions/{version}/stats", summary="Statistics of a version", openapi_extra=responses.VERSIONS)
async def statistics(request: Request, name: str, version: str | None = None) -> Response:
    gateway = gateway_state(request)
    return await _statistics(gateway, _versions(await gateway.directory.fleet(), name, version))


@router.get("/models/{name}", summary="Inputs and outputs of a model", openapi_extra=responses.VERSIONS)
@router.get("/models/{name}/versions/{version}", summary="Inputs and outputs of a version", openapi_extra=responses.VERSIONS)
async def model(request: Request, name: str, version: str | None = None) -> Response:
    fleet = await gateway_state(request).directory.fleet()
    spec = _loaded_spec(fleet, name, version)
    return json_response(model_metadata(spec, [other.version for other in _versions(fleet, name, None)]))


@router.get("/models/{name}/ready", summary="Is a model ready?", openapi_extra=responses.VERSION_READY)
@router.get("/models/{name}/versions/{version}/ready", summary="Is a version ready?", openapi_extra=responses.VERSION_READY)
async def model_ready(request: Request, name: str, version: str | None = None) -> Response:
    fleet = await gateway_state(request).directory.fleet()
    state, reason = model_directory.state_of(fleet, _newest(fleet, name, version))
    if state == "ready":
        return json_response({"name": name, "ready": True})
    return json_response({"name": name, "ready": False, "error": f"model '{name}' is not ready: {reason or state}"}, 503)


@router.get("/models/{name}/config", summary="A model's configuration in Triton's form", openapi_extra=responses.VERSIONS)
@router.get(
    "/models/{name}/versions/{version}/config", summary="A version's configuration in Triton's form", openapi_extra=responses.VERSIONS
)
async def config(request: Request, name: str, version: str | None = None) -> Response:
    gateway = gateway_state(request)
    spec = _loaded_spec(await gateway.directory.fleet(), name, version)
    return json_response(model_config(spec, gateway.settings.max_images))


for path in INFER_PATHS:
    router.routes.append(Route(path, infer, methods=["POST"], include_in_schema=False))  # for 405s: POSTs take the fast path


@router.post("/repository/index", summary="Every bundle and its state", openapi_extra=responses.INDEX)
async def index(request: Request) -> Response:
    content = await read_small_body(request.stream(), MAX_INDEX_BODY_BYTES)
    JsonOutline.parse(content)  # refuses what the decoder would take too long for
    try:
        options = msgspec.json.decode(content) if content else {}
    except msgspec.DecodeError as error:
        raise invalid(f"failed to parse the request JSON: {error}") from error
    ready_only = isinstance(options, dict) and options.get("ready") is True
    return json_response(repository.index(await gateway_state(request).dispatcher.fleet.read(fresh=True), ready_only=ready_only))


@router.post("/repository/models/{name}/load", summary="Load a bundle in every worker", openapi_extra=responses.LOAD)
async def load(request: Request, name: str) -> Response:
    gateway = gateway_state(request)
    repository.check_allowed(request, gateway.settings)
    await repository.load(name, gateway.dispatcher.fleet)
    return json_response({})


@router.post("/repository/models/{name}/unload", summary="Take a bundle out of service in every worker", openapi_extra=responses.UNLOAD)
async def unload(request: Request, name: str) -> Response:
    gateway = gateway_state(request)
    repository.check_allowed(request, gateway.settings)
    await repository.unload(name, gateway.dispatcher.fleet)
    return json_response({})


@router.api_route("/trace/setting", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/models/{name}/trace/setting", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/logging", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/systemsharedmemory/{path:path}", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/cudasharedmemory/{path:path}", methods=["GET", "POST"], include_in_schema=False)
async def not_offered(request: Request) -> Response:
    raise Problem(
        ProblemKind.NOT_SUPPORTED,
        f"{request.url.path[:MAX_QUOTED_CHARS]}: this server offers no trace settings, logging settings or shared memory",
    )


@router.api_route("", methods=METHODS, include_in_schema=False)
@router.api_route("/{path:path}", methods=METHODS, include_in_schema=False)
async def not_found(request: Request) -> Response:
    allowed = allowed_methods(router.routes, request.scope)
    if not allowed:
        raise Problem(ProblemKind.NOT_FOUND, f"not found: {request.url.path[:MAX_QUOTED_CHARS]}")
    response = to_response(
        Problem(ProblemKind.METHOD_NOT_ALLOWED, f"{request.url.path[:MAX_QUOTED_CHARS]} does not answer {request.method}")
    )
    response.headers["Allow"] = ", ".join(sorted(allowed))
    return response


def _versions(fleet: Fleet, name: str, version: str | None) -> list[BundleSpec]:
    """Return the known versions of a model, oldest first, or the given one. Raises Problem (404) if there is none."""
    found = [spec for spec in fleet.specs.values() if spec.name == name and version in (None, spec.version)]
    if not found:
        raise unknown_model(name, version)
    return sorted(found, key=lambda spec: model_directory.version_order(spec.version))


def _newest(fleet: Fleet, name: str, version: str | None) -> BundleSpec:
    spec = model_directory.newest(fleet, _versions(fleet, name, version))
    assert spec is not None
    return spec


def _loaded_spec(fleet: Fleet, name: str, version: str | None) -> BundleSpec:
    """Return the newest version, or the given one. Raises Problem (404) if there is none or the model is unloaded."""
    spec = _newest(fleet, name, version)
    if model_directory.is_unloaded(fleet, name):
        raise unloaded_model(name)
    return spec


async def _statistics(gateway: GatewayState, specs: list[BundleSpec]) -> Response:
    counters = await asyncio.gather(*(gateway.dispatcher.status.statistics(spec.id) for spec in specs))
    return json_response({"model_stats": [model_statistics(spec, counted) for spec, counted in zip(specs, counters, strict=True)]})
