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
from server.gateway import app_state
from server.gateway.app_state import Gateway
from server.gateway.inference.admission import Visit
from server.gateway.inference.error_mapping import answered, of_refusal
from server.gateway.inference.runner import Asked
from server.gateway.open_inference import compression, protocol_model
from server.gateway.open_inference.errors import invalid, to_response
from server.gateway.open_inference.inputs import FIRST_INPUT, read_items
from server.gateway.open_inference.outputs import check_outputs, write_outputs
from server.gateway.open_inference.protocol_model import ProtocolModel
from server.gateway.open_inference.tensors import InferRequest, decode_request, encode_response
from server.gateway.openapi.responses import INFER
from server.http.requests import MAX_TIMEOUT, DisconnectWatcher, read_body
from server.queue.messages import Priority
from server.quote import quote
from server.tasks.base import Arrays, Item
from server.tasks.capabilities import TakesSteps, plan_of
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
    return await answered(request, _answer(request, **request.path_params), to_response)


ROUTES = [Route(path, infer, methods=["POST"], include_in_schema=False) for path in INFER_PATHS]


def operation(path: str) -> dict[str, Any]:
    """For OpenAPI."""
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
    here = app_state.of(request)
    known = here.directory.last_known(name if version is None else f"{name}@{version}")
    task = None if known is None else main_task(known)
    takes_long = isinstance(task, TakesSteps)
    async with here.admission.admit(request.scope, "open-inference", takes_long=takes_long) as visit:
        asked, received, inflated = await _read(request, here, visit)
        if _priority(asked) == "low":
            await visit.lower()
        with DisconnectWatcher(here.ticks, request.receive, visit.limit):
            spec = await protocol_model.find(here, name, version)
            visit.resolved(spec)
            offered = protocol_model.protocol_model(spec, asked)
            if isinstance(offered.task, TakesSteps) and _timeout(asked) is None:
                visit.set_deadline(here.settings.job_timeout)
            check_outputs(asked, name, offered.outputs)
            items = await here.large_bodies.in_turn(
                visit.client, inflated, partial(read_items, asked, name, offered.inputs, offered.parts, here.settings.max_images)
            )
            await visit.reservation.resize(len(items), max(visit.reservation.nbytes, sum(map(_size, items))))
            asked = replace(asked, inputs=())  # they may be large, and are not needed while their items wait
            part = next(declared.name for declared in offered.inputs if declared.name in items[0])
            wanted = await here.text_cache.recall(_plan(asked, offered, spec, part, visit), visit.client)
            answer = await here.inference.run(items, wanted, visit)
            await here.text_cache.learn(wanted, answer.outputs, visit.client)
        began = time.perf_counter()
        arrays, told = await here.presenting.to_tensors(wanted, answer.outputs, client=visit.client)
        write = partial(_respond, request, asked, spec, offered, arrays, told)
        response = await here.presenting.aside(wanted, answer.outputs, write, client=visit.client)
        here.count_answer(spec, began, len(response.body), received)
        return response


async def _read(request: Request, here: Gateway, visit: Visit) -> tuple[InferRequest, int, int]:
    """The request, the bytes of its body, and as many as they are inflated; its deadline is set. Raises Problem."""
    content = await read_body(request.receive, here.settings.max_body_bytes, visit.reservation)
    header_length = visit.head.first(HEADER_LENGTH.lower().encode())

    in_turn = partial(here.large_bodies.in_turn, visit.client)
    encoding = visit.head.first(b"content-encoding") or ""
    plain = await compression.inflate(content, encoding, here.settings.max_body_bytes, visit.reservation, in_turn)
    asked = await in_turn(len(plain), partial(decode_request, plain, header_length, raw_input=FIRST_INPUT))
    seconds = _timeout(asked)
    if seconds is not None:
        visit.set_deadline(seconds)
    return asked, len(content), len(plain)


def _size(item: Item) -> int:
    return sum(map(len, item.values()))


def _timeout(asked: InferRequest) -> float | None:
    """`timeout` in microseconds → seconds; None where the server's default holds."""
    timeout = asked.parameters.get("timeout", 0)
    if type(timeout) is not int or not 0 <= timeout <= MAX_TIMEOUT * 1e6:
        raise invalid(f"timeout: {quote(timeout)} must be an integer of microseconds, from 0 to {MAX_TIMEOUT * 1e6:.0f}")
    return timeout / 1e6 or None


def _priority(asked: InferRequest) -> Priority | None:
    level = asked.parameters.get("priority", 0)
    if type(level) is not int or level not in PRIORITIES:
        raise invalid(f"priority: {quote(level)} must be 1 (high), 2 (normal), 3 (low) or 0 (default)")
    return PRIORITIES[level]


def _plan(asked: InferRequest, offered: ProtocolModel, spec: BundleSpec, part: str, visit: Visit) -> Asked:
    try:
        plan = plan_of(offered.task, offered.read_options(asked.parameters), spec)
    except InvalidOption as error:
        raise of_refusal(error) from error
    return Asked(offered.task, spec, plan, part, visit.priority(_priority(asked)))


def _respond(
    request: Request, asked: InferRequest, spec: BundleSpec, offered: ProtocolModel, arrays: Arrays, told: Mapping[str, Any]
) -> Response:
    tensors = write_outputs(asked, offered.outputs, arrays)
    content, header_length = encode_response(spec.name, spec.version, asked.id, tensors, told)
    headers = {"Content-Type": "application/json"}
    if header_length is not None:
        headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(header_length)}
    encoding = compression.requested_encoding(request.headers.get("accept-encoding"))
    if encoding is not None:
        content = compression.compress(content, encoding)
        headers["Content-Encoding"] = encoding
    return Response(content, headers=headers)
