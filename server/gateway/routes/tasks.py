"""`POST /v1/<task>` for every task of the table, as plain ASGI: nothing stands between the server and these routes but `HotRoutes`."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from models.bundle import BundleSpec
from server.gateway import gateway, negotiation, options
from server.gateway.body import Submission, read_submission
from server.gateway.hot_routes import CLIENT_CLOSED_REQUEST
from server.gateway.inference import Asked, Timing
from server.gateway.interruption import ClientWatch
from server.gateway.problems import Kind, Problem
from server.gateway.surface import CommonOptions, Surface
from server.tasks.base import JSON, File, Task
from server.tasks.options import InvalidOption, Options
from server.tasks.registry import TASKS


class TaskRoute:
    """The ASGI application behind the path of one task."""

    def __init__(self, task: Task[Any, Any]) -> None:
        self.task = task
        self.surface = Surface.of(task)
        self.response = response_of(task)
        self._encoder = msgspec.json.Encoder()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        try:
            response = await self._answer(request)
        except Problem as problem:
            response = problem.to_response(request.state.request_id)
        except ClientDisconnect:
            response = Response(status_code=CLIENT_CLOSED_REQUEST)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        here = gateway.of(request)
        async with here.admission.admit(request, "rest") as visit:
            media_type = negotiation.choose(request.headers.get("accept"), self.task.media_types)
            query = options.read_query(request, self.surface)
            submission = await read_submission(request, self.surface, here.settings, visit.reservation)
            received = submission.nbytes
            common, own = self.surface.read_options(query, submission.fields)
            with ClientWatch(request.receive):
                spec = await here.directory.find(common.model, self.task.name)
                visit.resolved(spec)
                asked = self._asked(common, own, submission, spec)
                answer = await here.inference.run(submission.items(), asked, visit)
            began = time.perf_counter()
            presented = self.task.present(answer.outputs, asked.plan, spec, media_type)
            response = self._respond(presented, spec, visit.request_id, answer.timing, media_type)
            counted = here.metrics.of(spec)
            counted.postprocess.observe(time.perf_counter() - began)
            counted.payload_in.observe(received)
            counted.payload_out.observe(len(response.body))
            return response

    def _asked(self, common: CommonOptions, own: Options, submission: Submission, spec: BundleSpec) -> Asked:
        """Raises Problem for parts that the bundle does not take or lacks, and for options that it cannot satisfy."""
        taken = {part.name: part for part in self.task.takes(spec)}
        for name in submission.parts:
            if name not in taken:
                raise Problem(Kind.INVALID_OPTION, f"{spec.id} takes {', '.join(taken)}", name)
        for part in taken.values():
            if part.required and part.name not in submission.parts:
                raise Problem(Kind.INVALID_OPTION, f"missing: {spec.id} needs it", part.name)
        try:
            plan = self.task.plan(own, spec)
        except InvalidOption as error:
            raise Problem(Kind.INVALID_OPTION, str(error), error.field) from error
        return Asked(self.task, spec, plan, submission.repeated or next(iter(submission.parts)), common.priority)

    def _respond(self, presented: Any, spec: BundleSpec, request_id: str, timing: Timing, media_type: str) -> Response:
        if isinstance(presented, File):
            durations = ", ".join(f"{name.removesuffix('_ms')};dur={value}" for name, value in _durations(timing))
            headers = {"X-Model": spec.id, "Server-Timing": durations, **presented.headers}
            return Response(presented.content, headers=headers, media_type=media_type)
        body = self.response(request_id, spec.name, spec.version, *msgspec.structs.astuple(presented), timing)
        return Response(self._encoder.encode(body), media_type=JSON)


def response_of(task: Task[Any, Any]) -> type[msgspec.Struct]:
    """The JSON answer of a task: its own fields between those that every answer has."""
    own = [(field.name, field.type) for field in msgspec.structs.fields(task.answer)]
    name = "".join(word.capitalize() for word in task.name.split("-"))
    fields = [("id", str), ("model", str), ("version", str), *own, ("timing", Timing)]
    return msgspec.defstruct(f"{name}Response", fields, frozen=True, namespace={"__doc__": task.answer.__doc__})


def _durations(timing: Timing) -> list[tuple[str, float]]:
    return [(name, value) for name, value in msgspec.structs.asdict(timing).items() if name.endswith("_ms")]


ENDPOINTS = {f"/v1/{name}": TaskRoute(task) for name, task in TASKS.items()}
ROUTES = [Route(path, endpoint, methods=["POST"], include_in_schema=False) for path, endpoint in ENDPOINTS.items()]
