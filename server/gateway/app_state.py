"""The objects that the routes of one gateway share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.types import Send

from server.concurrency.cancellation import TimerWheel
from server.gateway.auth.middleware import KeyRing
from server.gateway.catalog.model_directory import ModelDirectory
from server.gateway.fair_executor import BodyExecutor
from server.gateway.inference.admission import Admission
from server.gateway.inference.preparation import InferenceRunner
from server.gateway.inference.rendering import ResponseRenderer
from server.gateway.jobs.event_subscriptions import EventSubscriptions
from server.gateway.jobs.service import JobService
from server.gateway.status import Status
from server.http.sse import EventStream
from server.media.limits import MediaLimits
from server.queue.gateway.dispatcher import Dispatcher
from server.settings import Settings
from server.telemetry.metrics import GatewayMetrics

if TYPE_CHECKING:
    from server.gateway.inference.url_parts import PartFetcher


@dataclass(frozen=True)
class Gateway:
    settings: Settings
    limits: MediaLimits
    dispatcher: Dispatcher
    directory: ModelDirectory
    admission: Admission
    runner: InferenceRunner
    large_bodies: BodyExecutor
    fetcher: PartFetcher | None
    """None: nothing is fetched."""
    webhook_hosts: frozenset[tuple[str, int]]
    """Names and ports that may be told how jobs have ended."""
    renderer: ResponseRenderer
    jobs: JobService
    readers: EventSubscriptions
    metrics: GatewayMetrics
    ticks: TimerWheel
    """Timers of the limits of requests."""
    status: Status
    keys: KeyRing | None
    """None where the service asks for no keys."""

    def answers(self, key_name: str) -> bool:
        """Whether the one whose API key has this name may still be told anything; empty: whoever has none."""
        return not key_name if self.keys is None else self.keys.has(key_name)

    def event_stream(self, send: Send) -> EventStream:
        """A stream whose events are counted."""
        return EventStream(send, lambda name: self.metrics.events.labels(name).inc())


def of(request: Request) -> Gateway:
    """The gateway that a request came to."""
    gateway: Gateway = request.scope["app"].state.gateway
    return gateway
