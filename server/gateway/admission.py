"""Who is let in: draining, room in the queue, the deadline; and how every request for inference ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from starlette.requests import ClientDisconnect, Request

from models.bundle import BundleSpec
from server.gateway import arrival, options
from server.gateway.problems import Kind, Problem
from server.queue.dispatch import Dispatcher, Reservation
from server.queue.errors import DeadlinePassed, QueueFull, RedisAway
from server.settings import Settings
from server.telemetry import logs
from server.telemetry.metrics import GatewayMetrics

Protocol = Literal["rest", "open-inference"]

REJECTIONS = {
    Kind.QUEUE_FULL: "queue_full",
    Kind.DRAINING: "draining",
    Kind.TOO_LARGE: "too_large",
    Kind.TOO_SLOW: "too_slow",
    Kind.CLIENT_SHARE: "client_share",
    Kind.RESULTS_FULL: "results_full",
    Kind.NO_WORKER: "no_worker",
    Kind.REDIS_AWAY: "redis",
}
DRAINING_RETRY_AFTER = 1
"""Another gateway, or this one's successor, can take the request right away."""

log = logs.get(__name__)


@dataclass(eq=False)
class Visit:
    """One request for inference from admission to its end."""

    request_id: str
    started: float
    """`time.perf_counter()`: uvloop's own clock counts whole milliseconds."""
    timer: asyncio.Timeout
    reservation: Reservation
    """Room in the queue until the queue counts the jobs itself."""
    client: str = ""
    """Whose it is, by address."""
    model: str = ""
    version: str = ""
    ends_with_gateway: bool = False
    seconds: float = 0.0
    """What `X-Request-Timeout` allows, or the default."""
    last_words: Callable[[Problem], Awaitable[None]] | None = None
    """Tells a client whose response has begun why there is no answer."""

    def resolved(self, spec: BundleSpec) -> None:
        """From now on the visit counts for this bundle."""
        self.model, self.version = spec.name, spec.version

    def limit(self, seconds: float) -> None:
        """Set the deadline, in seconds since the start."""
        self.timer.reschedule(asyncio.get_running_loop().time() + seconds - (time.perf_counter() - self.started))

    def cut_off(self) -> None:
        """The gateway ends, and this request with it."""
        self.ends_with_gateway = True
        if not self.timer.expired():
            self.timer.reschedule(0)

    def seconds_left(self) -> float:
        deadline = self.timer.when()
        assert deadline is not None
        return deadline - asyncio.get_running_loop().time()


class Admission:
    """Lets requests in while there is room and the gateway is not about to end."""

    def __init__(self, settings: Settings, dispatcher: Dispatcher, metrics: GatewayMetrics) -> None:
        self._settings = settings
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._visits: set[Visit] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False

    @asynccontextmanager
    async def admit(
        self, request: Request, protocol: Protocol, *, takes_long: bool = False, asynchronous: bool = False
    ) -> AsyncIterator[Visit]:
        """Lets the `with` block read the body and run until the deadline of `X-Request-Timeout`.

        A request for which the queue has no room now is refused before its body is read. Room is taken as bytes arrive, so that one that
        only announces many holds none. Raises Problem; every failure of the queue inside the block becomes one. The end is counted under
        `protocol`. What `takes_long` has the deadline of jobs by default. An asynchronous request ends when its job is queued;
        `Visit.seconds` are then the job's.
        """
        started = time.perf_counter()
        length = arrival.declared_length(request) or 0
        told = request.state
        visit = Visit(told.request_id, started, asyncio.timeout(None), self._dispatcher.reserve(0, 0), told.client)
        self._visits.add(visit)
        self._idle.clear()
        self._metrics.in_flight.inc()
        outcome, seconds = "error", None
        try:
            async with _problems_of(visit):
                if self.draining:
                    raise Problem(Kind.DRAINING, "this gateway takes no new work", retry_after=DRAINING_RETRY_AFTER)
                if length > self._settings.max_body_bytes:
                    raise arrival.too_large(self._settings.max_body_bytes)
                visit.seconds = self._seconds(request, takes_long or asynchronous)
                async with visit.timer, visit.reservation:
                    visit.limit(min(visit.seconds, self._settings.request_timeout) if asynchronous else visit.seconds)
                    await visit.reservation.check(1, length)
                    yield visit
            outcome, seconds = "ok", time.perf_counter() - started
            self._metrics.request_duration.labels(visit.model).observe(seconds)
        except Problem as problem:
            outcome = _outcome(problem)
            if problem.kind in REJECTIONS:
                self._metrics.rejected.labels(REJECTIONS[problem.kind]).inc()
            if problem.kind.status == 500:
                log.error(problem.kind.slug, request_id=visit.request_id, model=visit.model, detail=problem.detail)
            if visit.last_words is not None:
                await visit.last_words(problem)
            raise
        except ClientDisconnect:
            outcome = "cancelled"
            raise
        finally:
            self._metrics.ended(visit.model, visit.version, protocol, outcome).inc()
            self._metrics.recent.ended(seconds)
            self._metrics.in_flight.dec()
            self._visits.discard(visit)
            if not self._visits:
                self._idle.set()

    def _seconds(self, request: Request, takes_long: bool) -> float:
        if not takes_long:
            return options.read_timeout(request, self._settings.request_timeout)
        most = max(options.MAX_TIMEOUT, self._settings.job_timeout)
        return options.read_timeout(request, self._settings.job_timeout, most)

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


@asynccontextmanager
async def _problems_of(visit: Visit) -> AsyncIterator[None]:
    try:
        yield
    except QueueFull as error:
        raise Problem(Kind.QUEUE_FULL, str(error), retry_after=error.retry_after) from error
    except RedisAway as error:
        raise Problem(Kind.REDIS_AWAY, str(error), retry_after=error.retry_after) from error
    except (DeadlinePassed, TimeoutError) as error:
        if visit.ends_with_gateway:
            raise Problem(Kind.DRAINING, "this gateway ended before the answer came", retry_after=DRAINING_RETRY_AFTER) from error
        raise Problem(Kind.DEADLINE, "no answer before the deadline; the work was cancelled") from error


def _outcome(problem: Problem) -> str:
    if problem.kind.status in (429, 503):
        return "rejected"
    if problem.kind.status == 504:
        return "deadline"
    return "error" if problem.kind.status == 500 else "client_error"
