"""Requests for inference are let in, unless the gateway drains or the queue is full, get their deadline, and are counted when they end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from starlette.requests import ClientDisconnect
from starlette.types import Scope

from models.bundle import BundleSpec
from server.concurrency.cancellation import Deadline, TimerWheel, strip_tracebacks
from server.gateway.auth.key_file import ApiKey
from server.gateway.inference.error_mapping import of_refused, redis_away
from server.gateway.inference.webhook_headers import refuse_webhook
from server.http.client_identity import owner_of
from server.http.problems import Kind, Problem
from server.http.requests import MAX_TIMEOUT, Head, body_too_large
from server.queue.errors import DeadlineExceeded, RedisUnavailable, Refused
from server.queue.gateway.reservations import Reservation, Reservations
from server.queue.messages import PRIORITIES, Priority
from server.queue.script_rows import NO_OWNER, Claim
from server.settings import Settings
from server.telemetry import logs
from server.telemetry.metrics import GatewayMetrics

Protocol = Literal["rest", "open-inference"]

REFUSED_UNRUN = (
    *(Kind.QUEUE_FULL, Kind.CLIENT_SHARE, Kind.KEY_SHARE, Kind.RESULTS_FULL, Kind.DRAINING),
    *(Kind.TOO_LARGE, Kind.TOO_SLOW, Kind.UNAUTHORIZED, Kind.NO_WORKER, Kind.BUNDLE_UNAVAILABLE),
)
REJECTIONS = {kind: kind.slug.replace("-", "_") for kind in REFUSED_UNRUN} | {Kind.REDIS_AWAY: "redis"}
"""Reasons of `opsin_rejected`."""
MEDIA_PARTS = ("image", "video", "audio", "depth")
MEDIA_REFUSALS = {413: "too_large", 415: "format", 422: "unusable"}
"""Reasons by status, where the field is one of these parts."""
DRAINING_RETRY_AFTER = 1
"""Another gateway, or this one's successor, can take the request right away."""

log = logs.get(__name__)


@dataclass(eq=False, slots=True)
class Visit:
    """A request for inference from admission to its end. `async with` it: a generator's frames would cost as much as all else of an
    admission."""

    admission: Admission
    head: Head
    request_id: str
    started: float
    """Seconds of `time.perf_counter()`."""
    limit: Deadline
    """The deadline. The visit also ends by it for other reasons: the client has left, no worker serves the bundle any more."""
    reservation: Reservation
    """Holds its place until the queue counts the jobs itself."""
    protocol: Protocol
    client: str
    """The client's address, or the name of its API key."""
    key: ApiKey
    takes_long: bool
    asynchronous: bool
    """It ends when its job is queued."""
    model: str = ""
    version: str = ""
    ends_with_gateway: bool = False
    seconds: float = 0.0
    """Time that `X-Request-Timeout` allows, or the default."""
    last_words: Callable[[Problem], Awaitable[None]] | None = None
    """Tells a client whose response has begun why there is no answer."""

    async def __aenter__(self) -> Visit:
        try:
            await self.admission.let_in(self)
        except BaseException as error:
            await self.admission.let_out(self, error)
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.admission.let_out(self, error)

    def priority(self, wanted: Priority | None) -> Priority:
        """The priority that is asked for; by default `normal`, or the highest that the key may ask for where that is less. Raises Problem
        (422) above it."""
        most = self.key.priority
        if wanted is None:
            return max("normal", most, key=PRIORITIES.index)
        if PRIORITIES.index(wanted) < PRIORITIES.index(most):
            raise Problem(Kind.INVALID_OPTION, f"the key of {self.key.name} may ask for {most} at most, not {wanted}", "priority")
        return wanted

    def resolved(self, spec: BundleSpec) -> None:
        """From now on the visit counts for this bundle."""
        self.model, self.version = spec.name, spec.version

    async def lengthen(self) -> None:
        """Its parts have told that it takes long: it has the deadline of jobs by default, and no room in the queue's last eighth. Raises
        Refused where it has taken some there."""
        self.takes_long = True
        self.reservation.lengthen()
        await self.reservation.check()
        if not self.asynchronous:
            self.seconds = self.admission.seconds(self)
            self.set_deadline(self.seconds)

    async def lower(self) -> None:
        """It asks for priority low, all of which has half of the queue. Raises Refused where it has no room there."""
        self.reservation.lower()
        await self.reservation.check(0 if self.reservation.items else 1)
        await self.give_way()

    async def give_way(self) -> None:
        """Before something that takes the event loop: where the visit is low, one such piece of work runs between two looks of the loop at
        its sockets, so that no other request waits for a batch of them."""
        if self.reservation.claim.low:
            await self.admission.low_turn.acquire()
            asyncio.get_running_loop().call_soon(self.admission.low_turn.release)

    def set_deadline(self, seconds: float) -> None:
        """In seconds since the start."""
        self.limit.set(seconds - (time.perf_counter() - self.started))

    def cut_off(self) -> None:
        """The gateway ends, and this request with it."""
        self.ends_with_gateway = True
        self.limit.end(TimeoutError())

    def seconds_left(self) -> float:
        assert self.limit.until is not None
        return self.limit.until - time.monotonic()


class Admission:
    """Lets requests in while there is room and the gateway is not about to end."""

    def __init__(self, settings: Settings, reservations: Reservations, metrics: GatewayMetrics, ticks: TimerWheel) -> None:
        self._settings = settings
        self._reservations = reservations
        self._metrics = metrics
        self._ticks = ticks
        self._visits: set[Visit] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False
        self.low_turn = asyncio.Lock()
        """Its holder runs the one piece of low work of this turn of the event loop."""

    def admit(self, scope: Scope, protocol: Protocol, *, takes_long: bool = False, asynchronous: bool = False) -> Visit:
        """`async with` it: the block may read the body and run until the deadline of `X-Request-Timeout`.

        A request for which the queue has no room now is refused before its body is read. Room is taken as bytes arrive, so that one that
        only announces many holds none. Raises Problem; every failure of the queue inside the block becomes one. The end is counted under
        `protocol`. What `takes_long` has the deadline of jobs by default, and no room in the queue's last eighth. An asynchronous request
        ends when its job is queued; `Visit.seconds` are then the job's.
        """
        head, state = Head.of(scope), scope["state"]
        if not asynchronous:
            refuse_webhook(head)
        key: ApiKey = state["api_key"]
        claim = Claim(owner_of(state["client"]) or NO_OWNER, takes_long, key.priority == "low", key.max_items)
        reservation = self._reservations.reserve(claim)
        return Visit(
            self,
            head,
            state["request_id"],
            time.perf_counter(),
            Deadline(self._ticks, None),
            reservation,
            protocol,
            state["client"],
            key,
            takes_long,
            asynchronous,
        )

    async def let_in(self, visit: Visit) -> None:
        """Raises Problem, Refused."""
        self._visits.add(visit)
        self._idle.clear()
        self._metrics.in_flight.inc()
        visit.limit.enter()
        if self.draining:
            raise Problem(Kind.DRAINING, "this gateway takes no new work", retry_after=DRAINING_RETRY_AFTER)
        length = visit.head.content_length or 0
        if length > self._settings.max_body_bytes:
            raise body_too_large(self._settings.max_body_bytes)
        visit.seconds = seconds = self.seconds(visit)
        visit.set_deadline(min(seconds, self._settings.request_timeout) if visit.asynchronous else seconds)
        await visit.reservation.check(1, length)

    async def let_out(self, visit: Visit, error: BaseException | None) -> None:
        """Counts how it ended; `error`: what its block ended with. Raises what that really was, where it is something else."""
        visit.reservation.release()
        happened = visit.limit.over(error)
        outcome, seconds = "error", None
        try:
            if happened is None:
                outcome, seconds = "ok", time.perf_counter() - visit.started
                self._metrics.duration_of(visit.model).observe(seconds)
                return
            problem = _problem_of(happened, visit)
            if problem is None:
                outcome = "cancelled" if isinstance(happened, ClientDisconnect) else outcome
            else:
                outcome = _outcome(problem)
                await self._refused(visit, problem)
            if problem is not None and problem is not happened:
                raise problem from strip_tracebacks(happened)  # the queue's hold the future that told of it, which holds it
            if happened is not error:
                raise happened from None
        finally:
            self._metrics.request_counter(visit.model, visit.version, visit.protocol, outcome).inc()
            self._metrics.history_counts.record_request(
                seconds, "" if visit.asynchronous or not visit.version else f"{visit.model}@{visit.version}"
            )
            self._metrics.in_flight.inc(-1)
            self._visits.discard(visit)
            if not self._visits:
                self._idle.set()
            problem = happened = error = None  # this frame is one of theirs: they would keep each other, and the request's body

    async def _refused(self, visit: Visit, problem: Problem) -> None:
        if problem.kind in REJECTIONS:
            self._metrics.rejected.labels(REJECTIONS[problem.kind]).inc()
        part = (problem.field or "").partition("[")[0]
        if part in MEDIA_PARTS and problem.kind.status in MEDIA_REFUSALS:
            self._metrics.media_refused.labels(part, MEDIA_REFUSALS[problem.kind.status]).inc()
        if problem.kind.status == 500:
            log.error(problem.kind.slug, request_id=visit.request_id, model=visit.model, detail=problem.detail)
        if visit.last_words is not None:
            await visit.last_words(problem)

    def seconds(self, visit: Visit) -> float:
        """The time that its header allows, or the default of its kind. Raises Problem."""
        if not (visit.takes_long or visit.asynchronous):
            return visit.head.timeout_s(self._settings.request_timeout)
        return visit.head.timeout_s(self._settings.job_timeout, max(MAX_TIMEOUT, self._settings.job_timeout))

    async def drain(self, timeout: float) -> None:
        """Take no new work and wait until what is in flight is finished; what is not after `timeout` seconds gets 503."""
        self.draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            log.warning("drain timeout", unfinished=len(self._visits))
            await self.cut_off()

    async def cut_off(self) -> None:
        """End everything that is in flight with 503."""
        self.draining = True
        for visit in self._visits:
            visit.cut_off()
        await self._idle.wait()


def _problem_of(error: BaseException, visit: Visit) -> Problem | None:
    """The problem that a client is told of an error; None for one that is not foreseen here."""
    match error:
        case Problem():
            return error
        case Refused():
            return of_refused(error)
        case RedisUnavailable():
            return redis_away(error, visit.request_id)
        case DeadlineExceeded() | TimeoutError() if visit.ends_with_gateway:
            return Problem(Kind.DRAINING, "this gateway ended before the answer came", retry_after=DRAINING_RETRY_AFTER)
        case DeadlineExceeded() | TimeoutError():
            return Problem(Kind.DEADLINE, "no answer before the deadline; the work was cancelled")
    return None


def _outcome(problem: Problem) -> str:
    if problem.kind.status in (429, 503):
        return "rejected"
    if problem.kind.status == 504:
        return "deadline"
    return "error" if problem.kind.status == 500 else "client_error"
