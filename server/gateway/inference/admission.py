"""Requests for inference are admitted unless the gateway drains or the queue is full, and get their deadline.

They end earlier if workers stop serving their bundle, and are counted when they end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from models.bundle import BundleSpec
from server.concurrency import Deadline, TimerWheel, strip_tracebacks
from server.gateway.auth.key_file import ApiKey
from server.gateway.inference.error_mapping import redis_unavailable_problem, refused_to_problem
from server.gateway.model_directory import ModelDirectory, no_worker, ready_bundles, serving, unavailable
from server.http.problems import Problem, ProblemKind
from server.http.requests import MAX_TIMEOUT, DisconnectWatcher, Head, body_too_large, owner_id
from server.http.sse import EventStream
from server.queue.connect import RedisUnavailable
from server.queue.gateway.fleet import Fleet
from server.queue.gateway.reservations import Reservation, Reservations
from server.queue.messages import PRIORITIES, Priority
from server.queue.script import NO_OWNER, Claim, DeadlineExceeded, Refused
from server.settings import Settings
from server.telemetry import logs
from server.telemetry.metrics import GatewayMetrics
from server.telemetry.tracing import RequestTrace

REFUSED_UNRUN = (
    *(ProblemKind.QUEUE_FULL, ProblemKind.CLIENT_QUOTA, ProblemKind.KEY_QUOTA, ProblemKind.RESULTS_FULL, ProblemKind.DRAINING),
    *(ProblemKind.TOO_LARGE, ProblemKind.TOO_SLOW, ProblemKind.UNAUTHORIZED, ProblemKind.NO_WORKER, ProblemKind.BUNDLE_UNAVAILABLE),
)
REJECTIONS = {kind: kind.slug.replace("-", "_") for kind in REFUSED_UNRUN} | {ProblemKind.REDIS_UNAVAILABLE: "redis"}
"""Reasons of `opsin_rejected`."""
MEDIA_PARTS = ("image", "video", "audio", "depth")
MEDIA_REFUSALS = {413: "too_large", 415: "format", 422: "unusable"}
"""Reason by status, if the field is one of these parts."""
CHECK_INTERVAL_S = 1.0
"""Time between checks of the bundles that requests wait for."""
DRAINING_RETRY_AFTER = 1
"""Another gateway, or this one's successor, can take the request right away."""

Mode = Literal["answer", "events", "job"]
"""A request is answered at once, as a stream of events, or by a job that outlives it."""
Protocol = Literal["rest", "open-inference"]

log = logs.get(__name__)


@dataclass(eq=False, slots=True)
class RequestContext:
    """The only value of a request that changes: who sent it, its deadline, and its reservation in the queue."""

    head: Head
    receive: Receive
    request_id: str
    client: str
    """The client's address, or the name of its API key."""
    key: ApiKey
    mode: Mode
    protocol: Protocol
    is_long_running: bool
    deadline: Deadline
    """Also ends the request if the client disconnects, or if no worker serves the bundle any more."""
    reservation: Reservation
    """Released once the queue counts the jobs itself."""
    stream: EventStream | None = None
    """Receives the reason if the request fails after its response has started."""
    trace: RequestTrace | None = None
    started_at: float = 0.0
    """Seconds of `time.perf_counter()`."""
    timeout_s: float = 0.0
    """Value of `X-Request-Timeout`, or the default; of the job if the request is asynchronous."""
    model: str = ""
    version: str = ""
    payload_bytes: int | None = None
    awaited: BundleSpec | None = None
    """The bundle whose answer it waits for, which `WorkerLossWatchdog` ends if workers stop serving the bundle."""
    unserved_since: float = 0.0
    """Time since which no worker serves that bundle, in monotonic seconds."""
    cancelled_by_shutdown: bool = False
    _watcher: DisconnectWatcher | None = None

    def set_bundle(self, spec: BundleSpec) -> None:
        """Count the request for this bundle."""
        self.model, self.version = spec.name, spec.version
        if self.trace is not None:
            self.trace.attributes["opsin.bundle"] = spec.id

    def set_deadline(self, seconds: float) -> None:
        """Set the deadline to so many seconds after the start."""
        self.deadline.set(seconds - (time.perf_counter() - self.started_at))

    def seconds_left(self) -> float:
        assert self.deadline.until is not None
        return self.deadline.until - time.monotonic()

    def watch(self, timers: TimerWheel) -> None:
        """End the request if the client disconnects. The body must have been read."""
        self._watcher = DisconnectWatcher(timers, self.receive, self.deadline)
        self._watcher.start()

    def stop_watching(self) -> None:
        """Idempotent."""
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher = None

    def cancel(self) -> None:
        """End the request because the gateway shuts down."""
        self.cancelled_by_shutdown = True
        self.deadline.end(TimeoutError())

    def check_priority(self, priority: Priority | None) -> Priority:
        """Return the priority of the request. None: `normal`, or the highest that the key allows if that is lower.

        Raises Problem (422) if the key does not allow it."""
        maximum = self.key.priority
        if priority is None:
            return max("normal", maximum, key=PRIORITIES.index)
        if PRIORITIES.index(priority) < PRIORITIES.index(maximum):
            raise Problem(
                ProblemKind.INVALID_OPTION, f"the key of {self.key.name} allows priority {maximum} at most, not {priority}", "priority"
            )
        return priority


@dataclass(eq=False, slots=True)
class AdmittedRequest:
    """A context manager for the block of one request; a generator would double the time of an admission."""

    _admission: Admission
    _context: RequestContext

    async def __aenter__(self) -> RequestContext:
        try:
            await self._admission.start(self._context)
        except BaseException as error:
            await self._admission.finish(self._context, error)
            raise
        return self._context

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._admission.finish(self._context, error)


class Admission:
    """Admits requests while the queue has room and the gateway is not shutting down."""

    def __init__(self, settings: Settings, reservations: Reservations, metrics: GatewayMetrics, timers: TimerWheel) -> None:
        self._settings = settings
        self._reservations = reservations
        self._metrics = metrics
        self._timers = timers
        self.open_requests: set[RequestContext] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_leaving = False
        """Whether the gateway drains, or will in a moment: load balancers should choose another one."""
        self.draining = False
        self._low_priority_lock = asyncio.Lock()
        """Held by the one piece of low-priority work of this iteration of the event loop."""

    def enter(
        self,
        scope: Scope,
        receive: Receive,
        *,
        mode: Mode = "answer",
        protocol: Protocol = "rest",
        is_long_running: bool = False,
        stream: EventStream | None = None,
    ) -> AdmittedRequest:
        """Return a context manager whose block may read the body and run until the deadline of `X-Request-Timeout`.

        A request for which the queue has no room is refused before its body is read. The reservation grows as bytes arrive, so that a
        request that only announces many holds none. Every error of the queue inside the block becomes a Problem; the end is counted.
        Long-running requests have the deadline of jobs by default, and no share of the queue's last eighth. Raises Problem.
        """
        state = scope["state"]
        head: Head = state["head"]
        if mode != "job":
            head.refuse_webhook()
        key: ApiKey = state["api_key"]
        client: str = state["client"]
        claim = Claim(owner_id(client) or NO_OWNER, is_long_running, key.priority == "low", key.max_items)
        reservation, deadline = self._reservations.reserve(claim), Deadline(self._timers, None)
        context = RequestContext(
            head, receive, state["request_id"], client, key, mode, protocol, is_long_running, deadline, reservation, stream
        )
        context.trace = state["trace"]
        return AdmittedRequest(self, context)

    async def start(self, context: RequestContext) -> None:
        """Count the request as open, and check that it may enter. Raises Problem, Refused."""
        context.started_at = time.perf_counter()
        self.open_requests.add(context)
        self._idle.clear()
        self._metrics.in_flight.inc()
        context.deadline.enter()
        if self.draining:
            raise Problem(
                ProblemKind.DRAINING, "the gateway is shutting down and accepts no new requests", retry_after=DRAINING_RETRY_AFTER
            )
        length = context.head.content_length or 0
        if length > self._settings.max_body_bytes:
            raise body_too_large(self._settings.max_body_bytes)
        context.timeout_s = seconds = self._request_timeout_s(context)
        context.set_deadline(min(seconds, self._settings.request_timeout) if context.mode == "job" else seconds)
        await context.reservation.check(1, length)

    async def finish(self, context: RequestContext, error: BaseException | None) -> None:
        """Count how a request ended. error: that its block ended with. Raises the cause if that is another error."""
        context.reservation.release()
        context.stop_watching()
        cause = context.deadline.close(error)
        outcome, seconds = "error", None
        try:
            if cause is None:
                outcome, seconds = "ok", time.perf_counter() - context.started_at
                self._metrics.duration_of(context.model).observe(seconds)
                return
            problem = _admission_error_to_problem(cause, context)
            if problem is None:
                outcome = "cancelled" if isinstance(cause, ClientDisconnect) else outcome
            else:
                outcome = _outcome(problem)
                await self._count_refusal(context, problem)
            if problem is not None and problem is not cause:
                raise problem from strip_tracebacks(cause)  # the queue's errors hold the future that raised them, which holds the error
            if cause is not error:
                raise cause from None
        finally:
            self._metrics.request_counter(context.model, context.version, context.protocol, outcome).inc()
            is_counted = context.mode != "job" and context.version
            self._metrics.history_counts.record_request(seconds, f"{context.model}@{context.version}" if is_counted else "")
            self._metrics.in_flight.inc(-1)
            self.open_requests.discard(context)
            if not self.open_requests:
                self._idle.set()
            problem = cause = error = None  # their frames include this one: they would keep each other, and the request's body

    async def mark_long_running(self, context: RequestContext) -> None:
        """Give the request the deadline of jobs by default, and no share of the queue's last eighth: its parts have shown that it takes
        long. Raises Refused if it holds some of that."""
        context.is_long_running = True
        context.reservation.lengthen()
        await context.reservation.check()
        if context.mode != "job":
            context.timeout_s = self._request_timeout_s(context)
            context.set_deadline(context.timeout_s)

    async def mark_low_priority(self, context: RequestContext) -> None:
        """Count the request among those of priority low, which share half of the queue. Raises Refused if it has no room there."""
        context.reservation.lower()
        await context.reservation.check(0 if context.reservation.items else 1)
        await self.yield_event_loop(context)

    async def yield_event_loop(self, context: RequestContext) -> None:
        """Let the event loop look at its sockets before each piece of low-priority work, so that no other request waits for a batch of
        them."""
        if context.reservation.claim.low:
            await self._low_priority_lock.acquire()
            asyncio.get_running_loop().call_soon(self._low_priority_lock.release)

    async def _count_refusal(self, context: RequestContext, problem: Problem) -> None:
        if problem.kind in REJECTIONS:
            self._metrics.rejected.labels(REJECTIONS[problem.kind]).inc()
        part = (problem.field or "").partition("[")[0]
        if part in MEDIA_PARTS and problem.kind.status in MEDIA_REFUSALS:
            self._metrics.media_refused.labels(part, MEDIA_REFUSALS[problem.kind.status]).inc()
        if problem.kind.status == 500:
            log.error(problem.kind.slug, request_id=context.request_id, model=context.model, detail=problem.detail)
        if context.stream is not None:
            await context.stream.fail(problem, context.request_id)

    def _request_timeout_s(self, context: RequestContext) -> float:
        """Return the value of the request's header, or the default of its kind. Raises Problem."""
        if not (context.is_long_running or context.mode == "job"):
            return context.head.timeout_s(self._settings.request_timeout)
        return context.head.timeout_s(self._settings.job_timeout, max(MAX_TIMEOUT, self._settings.job_timeout))

    async def drain(self, timeout: float) -> None:
        """Take no new work and wait until open requests are finished; those that are not after `timeout` seconds get 503."""
        self.draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            log.warning("drain timeout", unfinished=len(self.open_requests))
            await self.cancel_all()

    async def cancel_all(self) -> None:
        """End all open requests with 503."""
        self.draining = True
        for context in self.open_requests:
            context.cancel()
        await self._idle.wait()


def _admission_error_to_problem(error: BaseException, context: RequestContext) -> Problem | None:
    """Return the problem that the client gets for an error. None: the error is not foreseen here."""
    match error:
        case Problem():
            return error
        case Refused():
            return refused_to_problem(error)
        case RedisUnavailable():
            return redis_unavailable_problem(error, context.request_id)
        case DeadlineExceeded() | TimeoutError() if context.cancelled_by_shutdown:
            return Problem(ProblemKind.DRAINING, "this gateway ended before the answer came", retry_after=DRAINING_RETRY_AFTER)
        case DeadlineExceeded() | TimeoutError():
            return Problem(ProblemKind.DEADLINE, "the request timed out and its work was cancelled")
    return None


def _outcome(problem: Problem) -> str:
    if problem.kind.status in (429, 503):
        return "rejected"
    if problem.kind.status == 504:
        return "deadline"
    return "error" if problem.kind.status == 500 else "client_error"


class WorkerLossWatchdog:
    """A watchdog that ends requests with Problem (503) if their bundle is refused, or has had no ready worker for `worker_grace`.

    It checks all requests of a gateway once a second."""

    def __init__(self, settings: Settings, directory: ModelDirectory, open_requests: Collection[RequestContext]) -> None:
        self._settings = settings
        self._directory = directory
        self._open_requests = open_requests

    async def watch_forever(self) -> None:
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            try:
                if any(context.awaited is not None for context in self._open_requests):
                    await self._check()
            except RedisUnavailable:
                pass  # unknown; the dispatcher measures how long Redis is unavailable
            except Exception:
                log.exception("check for bundles without workers failed")

    async def _check(self) -> None:
        fleet = await self._directory.fleet()
        now, grace = time.monotonic(), self._settings.worker_grace
        served: dict[str, bool] = {}
        for context in self._open_requests:
            if (spec := context.awaited) is None:
                continue
            content = spec.digest()  # requests for the old and the new content of a bundle may wait at once
            if content not in served:
                served[content] = bool(serving(fleet, spec))
            if served[content]:
                context.unserved_since = now
            elif reason := self._directory.refusal(fleet, spec):
                context.deadline.end(unavailable(spec.id, reason))
            elif now - context.unserved_since >= grace:
                context.deadline.end(no_worker(_no_worker_detail(fleet, spec, grace)))


def _no_worker_detail(fleet: Fleet, spec: BundleSpec, grace: float) -> str:
    if any((bundle.name, bundle.version) == (spec.name, spec.version) for _, bundle in ready_bundles(fleet)):
        return f"{spec.id} was replaced while this request waited, and no worker was ready for its old content for {grace:g} s"
    return f"no worker was ready for {spec.id} for {grace:g} s"
