"""`POST /v1/<route>` for every task, as plain ASGI behind `RequestMiddleware`.

A request is answered in one of three ways: directly, as a stream of events, or later by a job.
"""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from server.gateway.app_state import GatewayState
from server.gateway.inference.admission import RequestContext
from server.gateway.inference.body import parse_request
from server.gateway.inference.preparation import resolve_request
from server.gateway.inference.rendering import RESPONSE_TYPES
from server.gateway.inference.stages import PreparedRequest
from server.gateway.inference.task_interface import TaskInterface
from server.gateway.jobs import service
from server.gateway.routes import jobs as job_routes
from server.http.middleware import internal_error
from server.http.problems import Problem
from server.http.requests import CLIENT_CLOSED_REQUEST, RESPOND_ASYNC, Head
from server.http.sse import EventStream
from server.tasks import registry
from server.tasks.base import TakesSteps, Task, media_types


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
        gateway.metrics.count_answer(answered.spec, started_at, len(response.body), context.payload_bytes)
        return response


ENDPOINTS = {f"/v1/{name}": TaskRoute(*tasks) for name, tasks in registry.ROUTES.items()}
ROUTES = [Route(path, endpoint, methods=["POST"], include_in_schema=False) for path, endpoint in ENDPOINTS.items()]
