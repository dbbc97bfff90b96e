"""`/v1/jobs/{id}`: state, result and events of a request that was sent with `Prefer: respond-async`."""

from __future__ import annotations

from contextlib import AsyncExitStack, aclosing

import msgspec
from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.concurrency import AsyncCancelScope
from server.gateway.app_state import GatewayState, gateway_state
from server.gateway.auth.middleware import request_key
from server.gateway.inference.progress_stream import encode_preview, encode_start
from server.gateway.inference.stages import TaskPlan
from server.gateway.jobs import service
from server.gateway.jobs.event_subscriptions import EventSubscription
from server.gateway.jobs.service import MAX_INLINE_RESULT_BYTES
from server.gateway.openapi import responses
from server.http.problems import Problem, ProblemKind
from server.http.requests import DisconnectWatcher, Head
from server.http.sse import EventStream
from server.queue.connect import RedisUnavailable
from server.queue.messages import Progress, UnknownVersion, decode
from server.queue.record import FINAL_EVENTS, OPEN_STATES, Record, RecordEvent
from server.queue.script import RecordLost
from server.tasks.base import JSON
from server.telemetry import logs

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
NO_STORE_HEADERS = {"Cache-Control": "no-store"}
MAX_EVENT_ID_DIGITS = 15

log = logs.get(__name__)


@router.get("/{job_id}", summary="How far a job has come", openapi_extra=responses.JOB)
async def job(request: Request, job_id: str) -> Response:
    record = await gateway_state(request).jobs.read(job_id, request_key(request).name)
    return respond(record)


@router.get("/{job_id}/result", summary="The answer", openapi_extra=responses.RESULT)
async def result(request: Request, job_id: str) -> Response:
    gateway = gateway_state(request)
    record = await gateway.jobs.read(job_id, request_key(request).name)
    return JobResultResponse(gateway, record, request.state.head, request.state.client)


@router.get("/{job_id}/events", summary="What has happened, and what happens until the job ends", openapi_extra=responses.EVENTS)
async def events(request: Request, job_id: str) -> Response:
    gateway = gateway_state(request)
    after = _last_event_id(request)
    record = await gateway.jobs.read(job_id, request_key(request).name)
    if after > record.events:
        raise Problem(
            ProblemKind.INVALID_OPTION, f"{after}: the last event of this job is {record.events}; use its id, or 0", "Last-Event-ID"
        )
    if after == record.events and record.state not in OPEN_STATES:
        return Response(status_code=204, headers=NO_STORE_HEADERS)  # which stops an EventSource from reconnecting
    return JobEventsResponse(gateway, record, after, request.state.client)


@router.delete("/{job_id}", status_code=204, summary="Cancel a job, or remove one that has ended", openapi_extra=responses.CANCEL)
async def cancel(request: Request, job_id: str) -> Response:
    await gateway_state(request).jobs.cancel(job_id, request_key(request).name)
    return Response(status_code=204)


def respond(record: Record, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return the document of a job as a response."""
    pause = {"Retry-After": "1"} if record.state in OPEN_STATES and status == 200 else {}
    content = msgspec.json.encode(service.job_document(record))
    return Response(content, status, {**NO_STORE_HEADERS, **pause, **(headers or {})}, JSON)


def _last_event_id(request: Request) -> int:
    """Return the value of Last-Event-ID. Raises Problem (422)."""
    text = request.headers.get("last-event-id", "0").strip()
    if not text.isascii() or not text.isdigit() or len(text) > MAX_EVENT_ID_DIGITS:
        raise Problem(ProblemKind.INVALID_OPTION, f"{text[:40]!r}: use the id of an event of this job, or 0", "Last-Event-ID")
    return int(text)


class JobResultResponse(Response):
    """The result of a job, whose memory is reserved until it has been sent."""

    def __init__(self, gateway: GatewayState, record: Record, head: Head, client: str) -> None:
        super().__init__()
        self._gateway = gateway
        self._record = record
        self._head = head
        self._client = client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with AsyncExitStack() as exit_stack:
            with AsyncCancelScope() as making, DisconnectWatcher(self._gateway.timers, receive, making):  # some take minutes
                answer = self._gateway.jobs.result(self._record, self._head, self._client)
                response = await exit_stack.enter_async_context(answer)
            headers = [*response.raw_headers, (b"cache-control", NO_STORE_HEADERS["Cache-Control"].encode())]
            await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
            await send({"type": "http.response.body", "body": bytes(response.body)})


class JobEventsResponse(Response):
    """A stream of a job's events. It ends after the last one or with the gateway; the client then resumes at another gateway."""

    def __init__(self, gateway: GatewayState, record: Record, after: int, client: str) -> None:
        super().__init__()
        self._gateway = gateway
        self._record = record
        self._after = after
        self._client = client
        self._task_plan: TaskPlan | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = scope["state"]["request_id"]
        try:
            with self._gateway.event_subscriptions.follow(self._record.id, self._after, self._client) as subscription:
                async with AsyncExitStack() as exit_stack, aclosing(self._gateway.event_stream(send)) as stream:
                    stream.last = self._after
                    stream.start()
                    with AsyncCancelScope() as following, DisconnectWatcher(self._gateway.timers, receive, following):
                        await self._follow(subscription, stream, request_id, exit_stack)
                        await stream.end()
        except Problem as problem:  # before anything was sent
            await problem.to_response(request_id)(scope, receive, send)
        except ClientDisconnect:
            pass

    async def _follow(self, subscription: EventSubscription, stream: EventStream, request_id: str, exit_stack: AsyncExitStack) -> None:
        """Send events until the last one. exit_stack: holds the result until it has been sent."""
        replayed = True
        try:
            async for batch in subscription.read():
                if not self._gateway.is_key_valid(self._record.key_name):  # its keys were revoked
                    return
                for event in batch:
                    data = await self._data(event, exit_stack, replayed=replayed)
                    if data is not None:
                        stream.send_event(event.name, data, event.number)
                    if event.name in FINAL_EVENTS:
                        return
                replayed = False
        except RecordLost:
            await stream.fail(service.lost_job(self._record.id), request_id)
        except Problem as problem:
            await stream.fail(problem, request_id)
        except RedisUnavailable:
            pass  # the stream ends without a last event, and its client resumes

    async def _data(self, event: RecordEvent, exit_stack: AsyncExitStack, *, replayed: bool) -> bytes | None:
        """Return the JSON of an event. None: a preview that cannot be shown."""
        match event.name:
            case "started":
                return encode_start(int(event.data))
            case "preview":
                return await self._preview(event.data)
            case "done":
                record = await self._gateway.jobs.read(self._record.id, self._record.key_name)
                if replayed and record.results > MAX_INLINE_RESULT_BYTES:
                    return msgspec.json.encode({"result": service.result_url(record.id)})
                answer = self._gateway.jobs.answer(record, await self._plan(), JSON, self._client)
                return bytes((await exit_stack.enter_async_context(answer)).body)
            case "failed":
                record = await self._gateway.jobs.read(self._record.id, self._record.key_name)
                return service.job_problem(record).document(record.request_id)
            case _:
                return event.data

    async def _preview(self, message: bytes) -> bytes | None:
        try:
            report = decode(Progress, message)
        except (UnknownVersion, msgspec.MsgspecError) as error:
            log.warning("invalid preview", reason=str(error))
            return None
        return encode_preview(await self._plan(), report)

    async def _plan(self) -> TaskPlan:
        if self._task_plan is None:
            self._task_plan = await self._gateway.jobs.plan(self._record)
        return self._task_plan
