"""`POST /v2/models/{name}[/versions/{version}]/infer` of the Open Inference Protocol, for every task that has tensors."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from models.bundle import BundleSpec
from server.gateway.app_state import GatewayState, gateway_state
from server.gateway.inference.admission import RequestContext
from server.gateway.inference.error_mapping import refusal_to_problem, respond_or_refuse
from server.gateway.inference.stages import ResolvedRequest
from server.gateway.open_inference import compression, protocol_model
from server.gateway.open_inference.errors import invalid, to_response
from server.gateway.open_inference.protocol_model import ProtocolModel
from server.gateway.open_inference.task_tensors import FIRST_INPUT, check_outputs, read_items, write_outputs
from server.gateway.open_inference.tensors import InferRequest, decode_request, encode_response
from server.gateway.openapi.responses import INFER
from server.http.requests import MAX_TIMEOUT, read_body
from server.queue.messages import Priority
from server.quote import quote
from server.tasks.base import Arrays, TakesSteps, plan_of
from server.tasks.options import InvalidOption
from server.tasks.registry import main_task

INFER_PATHS = ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer")
HEADER_LENGTH = "Inference-Header-Content-Length"
PRIORITIES: Mapping[int, Priority | None] = {0: None, 1: "high", 2: "normal", 3: "low"}
"""Triton's levels: 1 is the highest, 0 the default."""

BODY = {
    "required": True,
    "description": "JSON, or JSON followed by binary tensors; `docs/open-inference.md` has the parameters.",
    "content": {
        "application/json": {
            "schema": {"type": "object"},
            "example": {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["<base64>"]}]},
        },
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}


async def infer(request: Request) -> Response:
    return await respond_or_refuse(request, _answer(request, **request.path_params), to_response)


ROUTES = [Route(path, infer, methods=["POST"], include_in_schema=False) for path in INFER_PATHS]


def operation(path: str) -> dict[str, Any]:
    """Return the OpenAPI operation of a path."""
    names = [name for name in ("name", "version") if f"{{{name}}}" in path]
    return {
        "tags": ["Open Inference Protocol v2"],
        "summary": "Run a model" + (" of one version" if "version" in names else ""),
        "operationId": "_".join(("infer", *names[1:])),
        "parameters": [{"in": "path", "name": name, "required": True, "schema": {"type": "string"}} for name in names],
        "requestBody": BODY,
        "responses": {"200": {"description": "The outputs", "content": {"application/json": {"schema": {"type": "object"}}}}, **INFER},
    }


async def _answer(request: Request, name: str, version: str | None = None) -> Response:
    gateway = gateway_state(request)
    spec = gateway.directory.last_known(name if version is None else f"{name}@{version}")
    is_long_running = spec is not None and isinstance(main_task(spec), TakesSteps)
    entering = gateway.admission.enter(request.scope, request.receive, protocol="open-inference", is_long_running=is_long_running)
    async with entering as context:
        resolved, offer, body = await _resolve(context, gateway, name, version)
        prepared = await gateway.runner.prepare(resolved)
        del resolved  # its items may be large, and are not needed while their jobs wait
        answered = await gateway.runner.submit(prepared)
        del prepared
        started_at = time.perf_counter()
        arrays, parameters = await gateway.renderer.to_tensors(answered)
        write = partial(_respond, context, body, answered.spec, offer, arrays, parameters)
        response = await gateway.renderer.run_in_thread_if_slow(answered, write)
        if context.trace is not None:
            context.trace.record_stage("present", started_at)
        gateway.metrics.count_answer(answered.spec, started_at, len(response.body), context.payload_bytes)
        return response


async def _resolve(
    context: RequestContext, gateway: GatewayState, name: str, version: str | None
) -> tuple[ResolvedRequest, ProtocolModel, InferRequest]:
    """Return the request for a bundle, how the protocol offers the bundle, and the body without its inputs. Raises Problem."""
    body, inflated_bytes = await _read(context, gateway)
    if _priority(body) == "low":
        await gateway.admission.mark_low_priority(context)
    context.watch(gateway.timers)
    spec = await protocol_model.find(gateway, name, version)
    context.set_bundle(spec)
    offer = protocol_model.protocol_model(spec, body)
    if isinstance(offer.task, TakesSteps) and _timeout(body) is None:
        context.set_deadline(gateway.settings.job_timeout)
    check_outputs(body, name, offer.outputs)
    read = partial(read_items, body, name, offer.inputs, offer.parts, gateway.settings.max_images)
    items = await gateway.body_executor.run(context.client, inflated_bytes, read)
    nbytes = sum(len(content) for item in items for content in item.values())
    await context.reservation.resize(len(items), max(context.reservation.nbytes, nbytes))
    part = next(declared.name for declared in offer.inputs if declared.name in items[0])
    try:
        plan = plan_of(offer.task, offer.read_options(body.parameters), spec)
    except InvalidOption as error:
        raise refusal_to_problem(error) from error
    priority = context.check_priority(_priority(body))
    resolved = ResolvedRequest(offer.task, spec, plan, context, part=part, priority=priority, items=items)
    return resolved, offer, replace(body, inputs=())


async def _read(context: RequestContext, gateway: GatewayState) -> tuple[InferRequest, int]:
    """Read the body and set the deadline. Return the body and its inflated size in bytes. Raises Problem."""
    head, limit = context.head, gateway.settings.max_body_bytes
    content = await read_body(context.receive, limit, context.reservation)
    context.payload_bytes = len(content)
    in_turn = partial(gateway.body_executor.run, context.client)
    plain = await compression.inflate(content, head.first(b"content-encoding") or "", limit, context.reservation, in_turn)
    decode = partial(decode_request, plain, head.first(HEADER_LENGTH.lower().encode()), raw_input=FIRST_INPUT)
    body = await in_turn(len(plain), decode)
    seconds = _timeout(body)
    if seconds is not None:
        context.set_deadline(seconds)
    return body, len(plain)


def _timeout(body: InferRequest) -> float | None:
    """Return `timeout`, in microseconds, in seconds. None: the service's default."""
    timeout = body.parameters.get("timeout", 0)
    if type(timeout) is not int or not 0 <= timeout <= MAX_TIMEOUT * 1e6:
        raise invalid(f"timeout: {quote(timeout)} must be an integer of microseconds, from 0 to {MAX_TIMEOUT * 1e6:.0f}")
    return timeout / 1e6 or None


def _priority(body: InferRequest) -> Priority | None:
    level = body.parameters.get("priority", 0)
    if type(level) is not int or level not in PRIORITIES:
        raise invalid(f"priority: {quote(level)} must be 1 (high), 2 (normal), 3 (low) or 0 (default)")
    return PRIORITIES[level]


def _respond(
    context: RequestContext, body: InferRequest, spec: BundleSpec, offer: ProtocolModel, arrays: Arrays, parameters: Mapping[str, Any]
) -> Response:
    tensors = write_outputs(body, offer.outputs, arrays)
    content, header_length = encode_response(spec.name, spec.version, body.id, tensors, parameters)
    headers = {"Content-Type": "application/json"}
    if header_length is not None:
        headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(header_length)}
    encoding = compression.requested_encoding(context.head.first(b"accept-encoding"))
    if encoding is not None:
        content = compression.compress(content, encoding)
        headers["Content-Encoding"] = encoding
    return Response(content, headers=headers)
