"""The objects that the routes of one gateway share."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.types import Send

from models.bundle import BundleSpec
from server.concurrency.cancellation import TimerWheel
from server.gateway.auth.middleware import KeyRing
from server.gateway.catalog.model_directory import ModelDirectory
from server.gateway.fair_executor import BodyExecutor
from server.gateway.inference.admission import Admission
from server.gateway.inference.rendering import Presenting
from server.gateway.inference.runner import Inference
from server.gateway.inference.text_cache import TextCache
from server.gateway.jobs.event_subscriptions import EventSubscriptions
from server.gateway.jobs.service import JobService
from server.gateway.status import Status
from server.http.sse import EventStream
from server.media.limits import MediaLimits
from server.queue.gateway.dispatcher import Dispatcher
from server.settings import Settings
from server.telemetry.metrics import GatewayMetrics

if TYPE_CHECKING:
    from server.gateway.inference.url_parts import Fetcher


@dataclass(frozen=True)
class Gateway:
    settings: Settings
    limits: MediaLimits
    dispatcher: Dispatcher
    directory: ModelDirectory
    admission: Admission
    inference: Inference
    text_cache: TextCache
    large_bodies: BodyExecutor
    fetcher: Fetcher | None
    """None: nothing is fetched."""
    webhook_hosts: frozenset[tuple[str, int]]
    """Names and ports that may be told how jobs have ended."""
    presenting: Presenting
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

    def count_answer(self, spec: BundleSpec, began: float, answered: int, received: int | None = None) -> None:
        """began: when the answer's presenting began, of `time.perf_counter()`; answered, received: bytes of the two bodies."""
        self.metrics.bundle(spec).postprocess.observe(time.perf_counter() - began)
        self.metrics.payload_out.observe(answered)
        if received is not None:
            self.metrics.payload_in.observe(received)

    def event_stream(self, send: Send) -> EventStream:
        """A stream whose events are counted."""
        return EventStream(send, lambda name: self.metrics.events.labels(name).inc())


def of(request: Request) -> Gateway:
    """The gateway that a request came to."""
    gateway: Gateway = request.scope["app"].state.gateway
    return gateway
