"""`POST /v1/<route>` for every task, as plain ASGI behind `RequestMiddleware`, and `GET /v1/scenes/{id}`.

A request is answered in one of three ways: directly, as a stream of events, or later by a job. A reconstructed scene is queried with other
options, without encoding it again.
"""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from server.gateway.app_state import GatewayState, gateway_state
from server.gateway.inference.admission import RequestContext
from server.gateway.inference.body import parse_request
from server.gateway.inference.error_mapping import check_cell, refusal_to_problem
from server.gateway.inference.preparation import resolve_request
from server.gateway.inference.rendering import RESPONSE_TYPES
from server.gateway.inference.stages import PreparedRequest, ResolvedRequest, TaskInterface
from server.gateway.jobs import service
from server.gateway.openapi import responses
from server.gateway.routes import jobs as job_routes
from server.http.middleware import internal_error
from server.http.problems import Problem, ProblemKind
from server.http.requests import CLIENT_CLOSED_REQUEST, RESPOND_ASYNC, Head
from server.http.sse import EventStream
from server.queue.gateway.kept_values import Scene
from server.queue.messages import to_numpy
from server.quote import quote
from server.tasks import registry
from server.tasks.base import KeepsScenes, TakesSteps, Task, media_types, offered_media_types
from server.tasks.options import InvalidOption
from server.tasks.registry import TASKS


class TaskRoute:
    """The ASGI application of the path of one task, or of several that share it."""

    def __init__(self, *tasks: Task[Any, Any]) -> None:
        self.task = tasks[0]
        self.is_long_running = isinstance(self.task, TakesSteps)
        self.interface = TaskInterface.from_tasks(*tasks)
        self.response = RESPONSE_TYPES[self.task.name]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head: Head = scope["state"]["head"]
        gateway = scope["app"].state.gateway
        try:
            if head.prefers_async:
                response = await self._enqueue_job(scope, receive, gateway)
            elif head.wants_events(media_types(self.task)):
                await self._stream(scope, receive, send, gateway)
                return
            else:
                response = await self._respond(scope, receive, gateway)
        except Problem as problem:
            response = problem.to_response(scope["state"]["request_id"])
        except ClientDisconnect:
            response = Response(status_code=CLIENT_CLOSED_REQUEST)
        await response(scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive, gateway: GatewayState) -> Response:
        async with gateway.admission.enter(scope, receive, is_long_running=self.is_long_running) as context:
            return await self._run(context, gateway)

    async def _stream(self, scope: Scope, receive: Receive, send: Send, gateway: GatewayState) -> None:
        """Respond with a stream of events. Raises Problem only while nothing has been sent."""
        async with aclosing(gateway.event_stream(send)) as stream:
            try:
                await self._respond_as_events(scope, receive, gateway, stream)
            except (Problem, ClientDisconnect):
                if not stream.started:
                    raise
            except Exception:
                await stream.fail(internal_error(), scope["state"]["request_id"])
                raise

    async def _respond_as_events(self, scope: Scope, receive: Receive, gateway: GatewayState, stream: EventStream) -> None:
        entering = gateway.admission.enter(scope, receive, mode="events", is_long_running=self.is_long_running, stream=stream)
        async with entering as context:
            response = await self._run(context, gateway)
            context.stop_watching()  # the end of the response looks like a disconnect
            stream.send_event("done", bytes(response.body))
            await stream.end()

    async def _enqueue_job(self, scope: Scope, receive: Receive, gateway: GatewayState) -> Response:
        """Queue the request as a job and answer 202."""
        async with gateway.admission.enter(scope, receive, mode="job", is_long_running=self.is_long_running) as context:
            key, webhook = context.head.idempotency_key(), service.read_webhook(context.head, gateway.webhook_hosts)
            record = await gateway.jobs.admit(await self._prepare(context, gateway), key, webhook)
            assert context.payload_bytes is not None
            gateway.metrics.payload_in.observe(context.payload_bytes)
            return job_routes.respond(record, 202, {"Location": service.url(record.id), "Preference-Applied": RESPOND_ASYNC})

    async def _prepare(self, context: RequestContext, gateway: GatewayState) -> PreparedRequest:
        """Parse, resolve and prepare a request; no stage is held once the next one exists."""
        return await gateway.runner.prepare(await resolve_request(await parse_request(context, self.interface, gateway), gateway))

    async def _run(self, context: RequestContext, gateway: GatewayState) -> Response:
        answered = await gateway.runner.submit(await self._prepare(context, gateway))
        await gateway.admission.yield_event_loop(context)
        started_at = time.perf_counter()
        response = await gateway.renderer.present(answered)
        if context.trace is not None:
            context.trace.record_stage("present", started_at)
        gateway.metrics.count_answer(answered.spec, started_at, len(response.body), context.payload_bytes)
        return response


ENDPOINTS = {f"/v1/{name}": TaskRoute(*tasks) for name, tasks in registry.ROUTES.items()}
ROUTES = [Route(path, endpoint, methods=["POST"], include_in_schema=False) for path, endpoint in ENDPOINTS.items()]


router = APIRouter(prefix="/v1/scenes", tags=["inference"])
MAX_QUOTED_ID_CHARS = 64


@router.get("/{scene_id}", summary="Ask a reconstructed scene again", openapi_extra=responses.SCENE)
async def scene(request: Request, scene_id: str) -> Response:
    gateway = gateway_state(request)
    async with gateway.admission.enter(request.scope, request.receive, is_long_running=True) as context:
        answered = await gateway.runner.submit(await gateway.runner.prepare(await _resolve_query(scene_id, context, gateway)))
        started_at = time.perf_counter()
        response = await gateway.renderer.present(answered)
        if context.trace is not None:
            context.trace.record_stage("present", started_at)
        gateway.metrics.count_answer(answered.spec, started_at, len(response.body))
        return response


async def _resolve_query(scene_id: str, context: RequestContext, gateway: GatewayState) -> ResolvedRequest:
    """Find the scene and make the arrays of the query. Raises Problem."""
    scene, task = await _find(gateway, scene_id, context.key.name)
    assert isinstance(task, KeepsScenes)
    interface = ENDPOINTS[f"/v1/{task.name}"].interface
    common, options = interface.options_in_url(context.head.query)
    media_type = context.head.negotiate(offered_media_types(task, options))
    if common.priority == "low":
        await gateway.admission.mark_low_priority(context)
    spec = await gateway.dispatcher.fleet.spec(scene.digest)
    if spec is None:
        raise _unknown_scene(scene_id)
    context.set_bundle(spec)
    if common.model not in (None, spec.id, spec.name):
        raise Problem(ProblemKind.INVALID_OPTION, f"{quote(common.model)}: the scene was encoded by {spec.id}", "model")
    try:
        plan = task.plan_followup(options, spec, scene_id)
        arrays = task.prepare_followup(to_numpy(scene.arrays), plan, gateway.limits)
    except InvalidOption as error:
        raise refusal_to_problem(error) from error
    await context.reservation.resize(1, sum(array.nbytes for array in arrays.values()))
    priority = context.check_priority(common.priority)
    context.watch(gateway.timers)
    return ResolvedRequest(task, spec, plan, context, part="scene", priority=priority, scene=arrays, media_type=media_type)


async def _find(gateway: GatewayState, scene_id: str, key_name: str) -> tuple[Scene, Task[Any, Any]]:
    """Return the scene and its task. Raises Problem: 404, also for scenes of other keys, and 421."""
    check_cell(scene_id, gateway.settings.cell)
    scene = await gateway.dispatcher.scenes.read(scene_id)
    task = None if scene is None else TASKS.get(scene.task)
    if scene is None or not isinstance(task, KeepsScenes) or scene.key_name != key_name:
        raise _unknown_scene(scene_id)
    return scene, task


def _unknown_scene(scene_id: str) -> Problem:
    return Problem(ProblemKind.NOT_FOUND, f"there is no scene {scene_id[:MAX_QUOTED_ID_CHARS]!r}, or it has expired (OPSIN_SCENE_TTL)")
