"""`/v2`: the Open Inference Protocol, as Triton's and KServe's clients speak it. `docs/open-inference.md` describes it for users.

No client may be told apart by its Content-Type or Accept: some send none, some send `application/octet-stream` with JSON.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.routing import Match

from models.bundle import BundleSpec
from server.gateway import arrival, catalog, gateway, large_bodies
from server.gateway.admission import Visit, cancelled_when_client_leaves
from server.gateway.gateway import Gateway
from server.gateway.open_inference import compression, repository
from server.gateway.open_inference.classify import IMAGE, check_outputs, read_pictures, write_outputs
from server.gateway.open_inference.errors import invalid, json_response, to_response
from server.gateway.open_inference.metadata import model_config, model_metadata, server_metadata
from server.gateway.open_inference.routing import OpenInferenceRoute
from server.gateway.open_inference.statistics import model_statistics
from server.gateway.open_inference.tensors import InferRequest, InferResponse, decode_request, encode_response
from server.gateway.options import MAX_TIMEOUT
from server.gateway.problems import Kind, Problem
from server.gateway.routes import model_repository
from server.queue.dispatch import Fleet
from server.queue.job import Priority
from server.tasks.classify import Classify, InvalidOption, Plan

HEADER_LENGTH = "Inference-Header-Content-Length"
PRIORITIES: Mapping[int, Priority] = {0: "normal", 1: "high", 2: "normal", 3: "low"}
"""Triton's levels: 1 is the highest, 0 the default."""
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]

INFER_BODY = {
    "requestBody": {
        "required": True,
        "description": "JSON, or JSON followed by binary tensors; `docs/open-inference.md` has the parameters.",
        "content": {
            "application/json": {
                "schema": {"type": "object"},
                "example": {"inputs": [{"name": IMAGE, "shape": [1], "datatype": "BYTES", "data": ["<base64 of a picture>"]}]},
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}

router = APIRouter(prefix="/v2", route_class=OpenInferenceRoute, tags=["Open Inference Protocol v2"])


@router.get("", summary="Name, version and extensions of the server")
@router.get("/", include_in_schema=False)
async def metadata(request: Request) -> Response:
    return json_response(server_metadata(gateway.of(request).settings.model_control))


@router.get("/health/live", summary="Does the process run?")
async def live() -> Response:
    return json_response({"live": True})


@router.get("/health/ready", summary="Can requests be answered?")
async def ready(request: Request) -> Response:
    here = gateway.of(request)
    reason = "draining" if here.admission.draining else await here.catalog.why_not_ready()
    return json_response({"ready": True}) if reason is None else json_response({"ready": False, "error": reason}, 503)


@router.get("/models", summary="Names of the models that are ready")
async def models(request: Request) -> Response:
    entries = repository.index(await gateway.of(request).catalog.fleet(), ready_only=True)
    return json_response({"models": sorted({entry["name"] for entry in entries})})


@router.get("/models/stats", summary="Statistics of all models")
async def all_statistics(request: Request) -> Response:
    here = gateway.of(request)
    fleet = await here.catalog.fleet()
    known = [fleet.specs.get((entry["name"], entry["version"])) for entry in repository.index(fleet, ready_only=False)]
    return await _statistics(here, [spec for spec in known if spec is not None])


@router.get("/models/{name}/stats", summary="Statistics of all versions of a model")
@router.get("/models/{name}/versions/{version}/stats", summary="Statistics of a version")
async def statistics(request: Request, name: str, version: str | None = None) -> Response:
    here = gateway.of(request)
    return await _statistics(here, _versions(await here.catalog.fleet(), name, version))


@router.get("/models/{name}", summary="Inputs and outputs of a model")
@router.get("/models/{name}/versions/{version}", summary="Inputs and outputs of a version")
async def model(request: Request, name: str, version: str | None = None) -> Response:
    fleet = await gateway.of(request).catalog.fleet()
    spec = _loaded(fleet, name, version)
    return json_response(model_metadata(spec, [other.version for other in _versions(fleet, name, None)]))


@router.get("/models/{name}/ready", summary="Is a model ready?")
@router.get("/models/{name}/versions/{version}/ready", summary="Is a version ready?")
async def model_ready(request: Request, name: str, version: str | None = None) -> Response:
    fleet = await gateway.of(request).catalog.fleet()
    state, reason = catalog.state_of(fleet, _newest(fleet, name, version))
    if state == "ready":
        return json_response({"name": name, "ready": True})
    return json_response({"name": name, "ready": False, "error": f"model '{name}' is not ready: {reason or state}"}, 503)


@router.get("/models/{name}/config", summary="A model's configuration in Triton's form")
@router.get("/models/{name}/versions/{version}/config", summary="A version's configuration in Triton's form")
async def config(request: Request, name: str, version: str | None = None) -> Response:
    here = gateway.of(request)
    spec = _loaded(await here.catalog.fleet(), name, version)
    return json_response(model_config(spec, here.settings.max_images))


@router.post("/models/{name}/infer", summary="Classify encoded pictures", openapi_extra=INFER_BODY)
@router.post("/models/{name}/versions/{version}/infer", summary="Classify encoded pictures with a version", openapi_extra=INFER_BODY)
async def infer(request: Request, name: str, version: str | None = None) -> Response:
    here = gateway.of(request)
    async with here.admission.admit(request, "open-inference") as visit:
        asked, pictures = await _read(request, name, here, visit)
        async with cancelled_when_client_leaves(request):
            spec = await _find(here, name, version)
            visit.resolved(spec)
            plan = _plan(asked, spec)
            answer = await here.inference.run(pictures, spec, plan, _priority(asked), visit)
        began = asyncio.get_running_loop().time()
        scores = np.stack([Classify.scores(outputs) for outputs in answer.outputs])
        tokens_in, tokens_out = (int(count) for count in answer.outputs[0]["tokens"])
        told = {"tokens_in": tokens_in, "tokens_out": tokens_out} | ({} if plan.rung is None else {"rung": plan.rung})
        response = _respond(request, InferResponse(spec.name, spec.version, asked.id, write_outputs(asked, scores, spec), told))
        here.metrics.postprocess.labels(spec.name).observe(asyncio.get_running_loop().time() - began)
        here.metrics.payload.labels("out").observe(len(response.body))
        return response


router.routes.extend(model_repository.router.routes)  # as routes of ours, so that other methods of theirs get their 405


@router.api_route("/trace/setting", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/models/{name}/trace/setting", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/logging", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/systemsharedmemory/{path:path}", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/cudasharedmemory/{path:path}", methods=["GET", "POST"], include_in_schema=False)
async def not_offered(request: Request) -> Response:
    raise Problem(Kind.NOT_OFFERED, f"{request.url.path}: this server offers no trace settings, logging settings or shared memory")


@router.api_route("", methods=METHODS, include_in_schema=False)
@router.api_route("/{path:path}", methods=METHODS, include_in_schema=False)
async def nothing_here(request: Request) -> Response:
    allowed = {method for route in router.routes if route.matches(request.scope)[0] is Match.PARTIAL for method in _methods(route)}
    if not allowed:
        raise Problem(Kind.NOT_FOUND, f"there is nothing at {request.url.path}")
    response = to_response(Problem(Kind.METHOD_NOT_ALLOWED, f"{request.url.path} does not answer {request.method}"))
    response.headers["Allow"] = ", ".join(sorted(allowed))
    return response


def _methods(route: Any) -> set[str]:
    return set(route.methods or ())


def _versions(fleet: Fleet, name: str, version: str | None) -> list[BundleSpec]:
    """The known versions of a model, oldest first, or the one that is named. Raises Problem (404) if there is none."""
    found = [spec for spec in fleet.specs.values() if spec.name == name and version in (None, spec.version)]
    if not found:
        raise _unknown(name, version)
    return sorted(found, key=lambda spec: catalog.version_order(spec.version))


def _newest(fleet: Fleet, name: str, version: str | None) -> BundleSpec:
    spec = catalog.newest(fleet, _versions(fleet, name, version))
    assert spec is not None
    return spec


def _loaded(fleet: Fleet, name: str, version: str | None) -> BundleSpec:
    """Raises Problem (404) also for what is unloaded, and for other tasks than classify, whose tensors have no names here yet."""
    spec = _newest(fleet, name, version)
    if catalog.is_unloaded(fleet, name):
        raise _unloaded(name)
    if spec.task != Classify.name:
        raise Problem(Kind.UNKNOWN_MODEL, f"Request for unknown model: '{name}' is for {spec.task}, which is not offered here")
    return spec


async def _find(here: Gateway, name: str, version: str | None) -> BundleSpec:
    """The bundle to run; waits for a worker as /v1 does. Raises Problem."""
    if "@" in name:  # our own way to name a version, not the protocol's
        raise _unknown(name, version)
    try:
        return await here.catalog.find(name if version is None else f"{name}@{version}", Classify.name)
    except Problem as problem:
        if problem.kind is not Kind.UNKNOWN_MODEL:
            raise
        unloaded = catalog.is_unloaded(await here.catalog.fleet(), name)
        raise (_unloaded(name) if unloaded else _unknown(name, version)) from problem


def _unknown(name: str, version: str | None) -> Problem:
    which = f"'{name}'" if version is None else f"'{name}' version {version}"
    return Problem(Kind.UNKNOWN_MODEL, f"Request for unknown model: {which} is not found")


def _unloaded(name: str) -> Problem:
    return Problem(Kind.UNKNOWN_MODEL, f"Request for unknown model: '{name}' is not ready, it is unloaded")


async def _statistics(here: Gateway, specs: list[BundleSpec]) -> Response:
    counters = await asyncio.gather(*(here.dispatcher.statistics(spec.id) for spec in specs))
    return json_response({"model_stats": [model_statistics(spec, counted) for spec, counted in zip(specs, counters, strict=True)]})


async def _read(request: Request, model: str, here: Gateway, visit: Visit) -> tuple[InferRequest, list[bytes]]:
    """The request without its inputs, and its pictures; the deadline and the room in the queue are set for them. Raises Problem."""
    content = await arrival.read(request, here.settings.max_body_bytes, visit.reservation)
    here.metrics.payload.labels("in").observe(len(content))
    encoding = request.headers.get("content-encoding", "")
    header_length = request.headers.get(HEADER_LENGTH)

    plain = await compression.inflate(content, encoding, here.settings.max_body_bytes, visit.reservation)

    def decode() -> tuple[InferRequest, list[bytes]]:
        asked = decode_request(plain, header_length, raw_input=IMAGE)
        check_outputs(asked, model)
        return replace(asked, inputs=()), read_pictures(asked, model, here.settings.max_images)

    asked, pictures = decode() if len(plain) <= large_bodies.SMALL else await large_bodies.in_turn(decode)
    seconds = _timeout(asked)
    if seconds is not None:
        visit.limit(seconds)
    await visit.reservation.resize(len(pictures), max(visit.reservation.nbytes, sum(map(len, pictures))))
    return asked, pictures


def _timeout(asked: InferRequest) -> float | None:
    """`timeout` in microseconds → seconds; None where the server's default holds."""
    timeout = asked.parameters.get("timeout", 0)
    if type(timeout) is not int or not 0 <= timeout <= MAX_TIMEOUT * 1e6:
        raise invalid(f"timeout: {timeout!r} must be an integer of microseconds, from 0 to {MAX_TIMEOUT * 1e6:.0f}")
    return timeout / 1e6 or None


def _priority(asked: InferRequest) -> Priority:
    level = asked.parameters.get("priority", 0)
    if type(level) is not int or level not in PRIORITIES:
        raise invalid(f"priority: {level!r} must be 1 (high), 2 (normal), 3 (low) or 0 (default)")
    return PRIORITIES[level]


def _plan(asked: InferRequest, spec: BundleSpec) -> Plan:
    merge = asked.parameters.get("merge")
    if merge is not None and type(merge) not in (str, int):
        raise invalid(f"merge: {merge!r} must be `off`, an integer or a rung's name")
    try:
        return Classify.plan(None if merge is None else str(merge), spec)
    except InvalidOption as error:
        raise Problem(Kind.INVALID_OPTION, str(error), error.field) from error


def _respond(request: Request, answer: InferResponse) -> Response:
    content, header_length = encode_response(answer)
    headers = {"Content-Type": "application/json"}
    if header_length is not None:
        headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(header_length)}
    encoding = compression.wanted(request.headers.get("accept-encoding"))
    if encoding is not None:
        content = compression.compress(content, encoding)
        headers["Content-Encoding"] = encoding
    return Response(content, headers=headers)
