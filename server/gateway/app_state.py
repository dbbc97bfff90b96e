"""The application state of a gateway: the objects that its routes share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.types import Send

from server.concurrency import TimerWheel
from server.gateway.auth.middleware import KeyRing
from server.gateway.fair_executor import BodyExecutor
from server.gateway.inference.admission import Admission
from server.gateway.inference.preparation import InferenceRunner
from server.gateway.inference.rendering import ResponseRenderer
from server.gateway.jobs.event_subscriptions import EventSubscriptions
from server.gateway.jobs.service import JobService
from server.gateway.model_directory import ModelDirectory
from server.gateway.status import StatusReport
from server.http.sse import EventStream
from server.media.limits import MediaLimits
from server.queue.connect import RedisUnavailable
from server.queue.gateway.dispatcher import Dispatcher
from server.settings import Settings
from server.telemetry.metrics import GatewayMetrics
from server.telemetry.tracing import Tracer

if TYPE_CHECKING:
    from server.gateway.inference.url_parts import PartFetcher


@dataclass(frozen=True)
class GatewayState:
    settings: Settings
    limits: MediaLimits
    dispatcher: Dispatcher
    directory: ModelDirectory
    admission: Admission
    runner: InferenceRunner
    body_executor: BodyExecutor
    fetcher: PartFetcher | None
    """None: fetching URLs is not allowed."""
    webhook_hosts: frozenset[tuple[str, int]]
    """Hosts and ports that webhooks may be sent to."""
    renderer: ResponseRenderer
    jobs: JobService
    event_subscriptions: EventSubscriptions
    metrics: GatewayMetrics
    timers: TimerWheel
    status: StatusReport
    keys: KeyRing | None
    """None: requests need no key."""
    tracer: Tracer | None

    def is_key_valid(self, key_name: str) -> bool:
        """Return whether an API key of this name still exists. Empty: the name of requests without a key."""
        return not key_name if self.keys is None else self.keys.has(key_name)

    async def not_accepting_reason(self) -> str | None:
        """Return the reason why the gateway should get no requests now, with or without workers. None if it should."""
        if self.admission.is_leaving:
            return "draining"
        try:
            await self.dispatcher.fleet.read()
        except RedisUnavailable as error:
            return f"Redis refuses to work: {error.refusal}" if error.refusal else "Redis does not answer"
        return None

    async def not_ready_reason(self) -> str | None:
        """Return the reason why requests that name no model cannot be answered now. None if they can."""
        return await self.not_accepting_reason() or self.directory.not_ready_reason(self.dispatcher.fleet.latest)

    def event_stream(self, send: Send) -> EventStream:
        """Return a stream whose events are counted."""
        return EventStream(send, lambda name: self.metrics.events.labels(name).inc())


def gateway_state(request: Request) -> GatewayState:
    """Return the state of the gateway that received a request."""
    gateway: GatewayState = request.scope["app"].state.gateway
    return gateway
