"""Clients' jobs: their webhooks, their state, and their answer, which any gateway can present."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

import msgspec
from starlette.responses import Response

from server.concurrency import ClientBound
from server.gateway.inference import error_mapping
from server.gateway.inference.preparation import build_timing, to_ms
from server.gateway.inference.rendering import ResponseRenderer
from server.gateway.inference.stages import AnsweredRequest, PreparedRequest, TaskPlan, job_field
from server.http.problems import Problem, ProblemDocument, ProblemKind
from server.http.requests import WEBHOOK_EVENTS, WEBHOOK_URL, Head
from server.http.url_allowlist import AddressNotAllowed, parse_remote_url
from server.queue import keys
from server.queue.connect import RedisUnavailable
from server.queue.gateway.dispatcher import Dispatcher
from server.queue.messages import WEBHOOKS, QueuedJob, to_numpy
from server.queue.record import FINAL_EVENTS, OPEN_STATES, STATES, JobProgress, Record, RecordDraft, rfc3339
from server.queue.script import IdempotencyConflict, RecordLost, Refused
from server.quote import quote
from server.tasks.base import offered_media_types, plan_type
from server.tasks.registry import TASKS, route_name

MAX_SHOWN_ID_CHARS = 64
"""Maximum length of an id in messages. Opsin's are shorter; a requested one may be as long as a request's head."""
RESPONSE_WAIT_S = 60.0
"""Maximum time that an answer waits for its client's share."""
RETRY_AFTER_S = 5
RESULT_OVERHEAD_BYTES = 1024
"""Bytes of a stored reply in addition to its arrays, and of its share in the record and its events."""
MAX_INLINE_RESULT_BYTES = 64 * 1024
"""Maximum size of results that are presented in the event loop, without a wait for the client's turn, and replayed within events."""
FINAL_STATES = tuple(state for state in STATES if state in FINAL_EVENTS)


class Links(msgspec.Struct, frozen=True):
    events: str
    result: str


class JobDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A job. `state`: queued, running, done, failed or cancelled; `place` counts from 0 within its queue, null if it is unknown."""

    id: str
    task: str
    model: str
    version: str
    state: str
    place: int | None
    progress: JobProgress | None
    created: str
    started: str | None
    finished: str | None
    error: ProblemDocument | None
    links: Links


@dataclass(frozen=True)
class Webhook:
    """A webhook; empty if the client wants none."""

    url: str = ""
    events: str = ""
    """States of an ended job that are reported, separated by commas."""


def read_webhook(head: Head, hosts: Collection[tuple[str, int]]) -> Webhook:
    """Return the webhook of a request. hosts: names and ports that may be called. Raises Problem (422)."""
    url, events = head.webhook()
    if url is None:
        if events is not None:
            raise Problem(ProblemKind.INVALID_OPTION, f"given without {WEBHOOK_URL}", WEBHOOK_EVENTS)
        return Webhook()
    if not hosts:
        raise Problem(ProblemKind.INVALID_OPTION, "this service has no webhooks (OPSIN_WEBHOOK_HOSTS)", WEBHOOK_URL)
    try:
        remote = parse_remote_url(url, hosts)
    except AddressNotAllowed as error:
        detail = f"{error}; use an https URL of a host that OPSIN_WEBHOOK_HOSTS lists"
        raise Problem(ProblemKind.INVALID_OPTION, detail, WEBHOOK_URL) from None
    states = FINAL_STATES if events is None else [event.strip() for event in events.split(",")]
    for state in states:
        if state not in FINAL_STATES:
            detail = f"{quote(state)}: use {', '.join(FINAL_STATES)}, separated by commas"
            raise Problem(ProblemKind.INVALID_OPTION, detail, WEBHOOK_EVENTS)
    return Webhook(f"https://{remote.authority}{remote.target}", ",".join(states))  # one spelling for each host


@dataclass(eq=False)
class _SharedResponse:
    made: asyncio.Task[Response]
    readers: int = 0


class SharedResponses:
    """Large answers of jobs: a bounded number of bytes is read and sent at once, and each is made once for all concurrent readers.

    For one event loop. One client's answers hold a quarter of the bytes; an answer counts for the client that requested it first."""

    def __init__(self, nbytes: int) -> None:
        self._in_memory = ClientBound(nbytes, nbytes // 4)
        self._shared: dict[tuple[str, str], _SharedResponse] = {}

    @asynccontextmanager
    async def hold(
        self, key: tuple[str, str], client: str, nbytes: int, make: Callable[[], Awaitable[Response]]
    ) -> AsyncIterator[Response]:
        """Hold an answer until the end of the block, by which it has been sent. Raises Problem: 429, and what `make` raises.

        key: id of the job and media type."""
        shared = self._shared.get(key)
        if shared is None:
            shared = self._shared[key] = _SharedResponse(asyncio.create_task(self._make(client, nbytes, make)))
        shared.readers += 1
        try:
            yield await asyncio.shield(shared.made)
        finally:
            shared.readers -= 1
            if not shared.readers:
                del self._shared[key]
                self._drop(shared.made, client, nbytes)

    async def _make(self, client: str, nbytes: int, make: Callable[[], Awaitable[Response]]) -> Response:
        try:
            async with asyncio.timeout(RESPONSE_WAIT_S):
                await self._in_memory.enter(client, nbytes)
        except TimeoutError:
            detail = f"answers that are being read hold all of OPSIN_RESULTS_MAX_BYTES, or a quarter for one client ({client})"
            raise Problem(ProblemKind.CLIENT_QUOTA, detail, retry_after=RETRY_AFTER_S) from None
        try:
            return await make()
        except BaseException:
            self._in_memory.give(client, nbytes)
            raise

    def _drop(self, made: asyncio.Task[Response], client: str, nbytes: int) -> None:
        if not made.done():
            made.cancel()  # it returns what it holds
        elif not made.cancelled() and made.exception() is None:
            self._in_memory.give(client, nbytes)


class JobService:
    def __init__(self, dispatcher: Dispatcher, renderer: ResponseRenderer, results_max_bytes: int) -> None:
        """results_max_bytes: of stored results whose answers are made or sent at the same time."""
        self._dispatcher = dispatcher
        self._renderer = renderer
        self._answers = SharedResponses(results_max_bytes)

    async def admit(self, prepared: PreparedRequest, idempotency_key: str, webhook: Webhook) -> Record:
        """Queue a request as a job of its client, which outlives this gateway. Raises Problem, and what the Dispatcher raises."""
        context, plan, (counted, unit) = prepared.context, msgspec.msgpack.encode(prepared.plan), prepared.progress_total
        needs = WEBHOOKS if webhook.url else ""
        draft = RecordDraft(
            task=prepared.task.name,
            bundle=prepared.spec.id,
            digest=prepared.spec.digest(),
            part=prepared.part,
            items=prepared.items,
            counted=counted,
            counted_unit=unit,
            priority=prepared.priority,
            request_id=context.request_id,
            prepare_ms=to_ms(prepared.prepare_s),
            fingerprint=prepared.fingerprint,
            idem=_hash_key(context.key.name, idempotency_key) if idempotency_key else "",
            key_name=context.key.name,
            bound=len(plan) + sum(_result_bound(prepared, job) for job in prepared.jobs),
            webhook=webhook.url,
            webhook_events=webhook.events,
            traceparent="" if context.trace is None else str(context.trace.context),
        )

        def make_jobs(record: str) -> list[QueuedJob]:
            return [
                msgspec.structs.replace(job, id=f"{record}-{index}", record=record, needs=needs) for index, job in enumerate(prepared.jobs)
            ]

        try:
            context.reservation.hand_over()
            return await self._dispatcher.records.admit(draft, plan, make_jobs, max_items=context.key.max_items)
        except IdempotencyConflict:
            raise Problem(ProblemKind.INVALID_OPTION, "another request was sent with this key before", "Idempotency-Key") from None
        except Refused as refused:
            raise error_mapping.refused_to_problem(refused, prepared.part) from None

    async def read(self, job_id: str, key_name: str) -> Record:
        """Return the job of the API key with this name; empty for one that was sent without a key.

        Raises Problem: 404, also for other keys' jobs, 410 `job-lost`, 421; and RedisUnavailable."""
        error_mapping.check_cell(job_id, self._dispatcher.link.keyspace.cell)
        with _loss_as_problem(job_id):
            record = await self._dispatcher.records.read(job_id)
        if record is None or record.key_name != key_name:
            raise unknown_job(job_id)
        return record

    async def cancel(self, job_id: str, key_name: str) -> None:
        """End a job, or remove the result of one that has ended. Raises what `read` does."""
        error_mapping.check_cell(job_id, self._dispatcher.link.keyspace.cell)
        with _loss_as_problem(job_id):
            found = await self._dispatcher.records.cancel(job_id, key_name)
        if not found:
            raise unknown_job(job_id)

    @asynccontextmanager
    async def result(self, record: Record, head: Head, client: str) -> AsyncIterator[Response]:
        """Hold the answer that the plain request would have had, until it has been sent.

        Raises Problem: 406, 409, 410, 404, 429, or the job's own."""
        if record.state in OPEN_STATES:
            raise Problem(ProblemKind.JOB_NOT_DONE, f"the job is {record.state}; follow it at {events_url(record.id)}", retry_after=1)
        if record.state == "cancelled":
            raise Problem(ProblemKind.JOB_CANCELLED, "the job was cancelled before it had a result")
        if record.state == "failed":
            raise job_problem(record)
        plan = await self.plan(record)
        async with self.answer(record, plan, head.negotiate(offered_media_types(plan.task, plan.plan)), client) as response:
            yield response

    async def plan(self, record: Record) -> TaskPlan:
        """Return the plan of a job. Raises Problem: 501 for a task that this gateway does not know, 404 if the spec is gone."""
        task = TASKS.get(record.task)
        if task is None:
            raise Problem(ProblemKind.NOT_SUPPORTED, f"this gateway does not know the task {record.task!r}: ask a newer one")
        spec, plan = await self._dispatcher.fleet.spec(record.digest), await self._dispatcher.records.plan(record.id)
        if spec is None or plan is None:
            raise unknown_job(record.id)
        try:
            return TaskPlan(task, spec, msgspec.msgpack.decode(plan, type=plan_type(task)))
        except msgspec.MsgspecError as error:
            raise RedisUnavailable.unreadable(keys.record(record.id), error) from error

    @asynccontextmanager
    async def answer(self, record: Record, plan: TaskPlan, media_type: str, client: str) -> AsyncIterator[Response]:
        """Hold the answer of a job that is done, until it has been sent. Raises Problem."""
        make = partial(self._present, record, plan, media_type, client)
        if record.results <= MAX_INLINE_RESULT_BYTES:
            yield await make()
            return
        async with self._answers.hold((record.id, media_type), client, record.results, make) as response:
            yield response

    async def _present(self, record: Record, plan: TaskPlan, media_type: str, client: str) -> Response:
        replies = await self._dispatcher.records.replies(record)
        if replies is None:
            raise unknown_job(record.id)
        run_s = ((record.finished_ms or record.created_ms) - record.created_ms) / 1000
        prepare = record.prepare_ms / 1000
        timing = build_timing(replies, prepare_s=prepare, round_trip_s=run_s, total_s=prepare + run_s)
        answered = AnsweredRequest(
            *(plan.task, plan.spec, plan.plan, [to_numpy(reply.arrays) for reply in replies], timing, media_type),
            client=client,
            key_name=record.key_name,
            request_id=record.request_id,
            is_large=record.results > MAX_INLINE_RESULT_BYTES,
        )
        return await self._renderer.present(answered)


def _hash_key(key_name: str, idempotency_key: str) -> str:
    """Return a hash, since two API keys may use the same Idempotency-Key. No header holds the character between them."""
    return hashlib.sha256(f"{key_name}\0{idempotency_key}".encode() if key_name else idempotency_key.encode()).hexdigest()


def _result_bound(prepared: PreparedRequest, job: QueuedJob) -> int:
    return prepared.task.result_bound(prepared.plan, prepared.spec, to_numpy(job.arrays)) + RESULT_OVERHEAD_BYTES


def job_document(record: Record) -> JobDocument:
    name, _, version = record.bundle.partition("@")
    return JobDocument(
        id=record.id,
        task=route_name(TASKS[record.task]) if record.task in TASKS else record.task,
        model=name,
        version=version,
        state=record.state,
        place=record.place,
        progress=record.progress,
        created=rfc3339(record.created_ms),
        started=None if record.started_ms is None else rfc3339(record.started_ms),
        finished=None if record.finished_ms is None else rfc3339(record.finished_ms),
        error=job_problem(record).as_struct(record.request_id, record.traceparent[3:35] or None) if record.failure is not None else None,
        links=Links(events_url(record.id), result_url(record.id)),
    )


def job_problem(record: Record) -> Problem:
    """Return the problem of a failed job."""
    assert record.failure is not None
    field = None
    if record.failed_index is not None and record.task in TASKS:
        field = job_field(TASKS[record.task], record.part, record.failed_index, record.items or record.count)
    return error_mapping.failure_to_problem(record.failure, record.bundle.partition("@")[0], field)


def url(job_id: str) -> str:
    return f"/v1/jobs/{job_id}"


def events_url(job_id: str) -> str:
    return f"{url(job_id)}/events"


def result_url(job_id: str) -> str:
    return f"{url(job_id)}/result"


def unknown_job(job_id: str) -> Problem:
    return Problem(ProblemKind.NOT_FOUND, f"there is no job {job_id[:MAX_SHOWN_ID_CHARS]!r}, or it has expired (OPSIN_RESULT_TTL)")


def lost_job(job_id: str) -> Problem:
    return Problem(ProblemKind.JOB_LOST, f"Redis has lost {job_id!r}, or it had expired before Redis restarted; send the request again")


@contextmanager
def _loss_as_problem(job_id: str) -> Iterator[None]:
    try:
        yield
    except RecordLost:
        raise lost_job(job_id) from None
