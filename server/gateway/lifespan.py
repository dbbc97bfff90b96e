"""The lifespan of a gateway: what it is made of, what starts with it, and what ends with it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI

from server.concurrency import TimerWheel
from server.gateway.app_state import GatewayState
from server.gateway.auth.middleware import KeyRing
from server.gateway.fair_executor import BodyExecutor, FairExecutor, HeavyClients
from server.gateway.inference.admission import REJECTIONS, Admission, WorkerLossWatchdog
from server.gateway.inference.preparation import InferenceRunner
from server.gateway.inference.rendering import ResponseRenderer
from server.gateway.inference.text_cache import TextCache
from server.gateway.jobs.event_subscriptions import EventSubscriptions
from server.gateway.jobs.service import JobService
from server.gateway.model_directory import ModelDirectory
from server.gateway.status import StatusReport
from server.http.url_allowlist import host_and_port
from server.media.images import ImageDecoder
from server.media.limits import MediaLimits
from server.queue.gateway.dispatcher import Dispatcher
from server.settings import Settings
from server.telemetry.metrics import GatewayMetrics
from server.telemetry.tracing import start_tracer

if TYPE_CHECKING:
    from server.gateway.inference.url_parts import PartFetcher
    from server.gateway.webhooks import WebhookSender


Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def assemble(settings: Settings) -> tuple[GatewayState, Lifespan]:
    """Return the state of a gateway and the lifespan of its app. Raises what `create_app` raises."""
    if settings.redis_url is None:
        raise ValueError("a gateway needs a queue: set OPSIN_REDIS_URL, or let `opsin serve` start a private one")
    keys = None if settings.api_keys_file is None else KeyRing(settings.api_keys_file)
    dispatcher = Dispatcher(settings.redis_url, settings)
    metrics = GatewayMetrics(REJECTIONS.values())
    dispatcher.count_items = metrics.count_items
    dispatcher.history_counts = metrics.history_counts
    directory = ModelDirectory(dispatcher.fleet, settings)

    def count_waiting(change: int) -> None:
        metrics.waiting_for_worker.inc(change)
        dispatcher.waiting_for_worker += change

    directory.count_waiting = count_waiting
    timers = TimerWheel()
    admission = Admission(settings, dispatcher.reservations, metrics, timers)
    watchdog = WorkerLossWatchdog(settings, directory, admission.open_requests)
    heavy = HeavyClients()
    executor = FairExecutor(len(os.sched_getaffinity(0)), heavy=heavy)
    limits = MediaLimits(settings.max_points, settings.max_queries, settings.clip_limits, settings.sound_limits)
    decoder = ImageDecoder(settings.max_pixels, limits=limits)
    renderer = ResponseRenderer(dispatcher.scenes, executor, decoder.budget)
    gateway = GatewayState(
        settings=settings,
        limits=limits,
        dispatcher=dispatcher,
        directory=directory,
        admission=admission,
        runner=InferenceRunner(dispatcher, metrics, decoder, executor, TextCache(dispatcher.vectors, settings.text_cache_bytes)),
        body_executor=BodyExecutor(heavy),
        fetcher=_fetcher(settings),
        webhook_hosts=frozenset(map(host_and_port, settings.webhook_hosts)),
        renderer=renderer,
        jobs=JobService(dispatcher, renderer, settings.results_max_bytes),
        event_subscriptions=EventSubscriptions(dispatcher.records, metrics, settings.max_connections),
        metrics=metrics,
        timers=timers,
        status=StatusReport(dispatcher),
        keys=keys,
        tracer=start_tracer("gateway", metrics.spans_dropped),
    )
    webhooks = _webhooks(gateway)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await dispatcher.start()
        background_coroutines = [watchdog.watch_forever(), metrics.flush_forever()]
        background_coroutines += [] if keys is None else [keys.watch_forever()]
        background_coroutines += [] if webhooks is None else [webhooks.send_forever()]
        background_tasks = list(map(asyncio.create_task, background_coroutines))
        yield
        for task in background_tasks:
            task.cancel()
        await renderer.close()
        await dispatcher.close()
        executor.close()
        gateway.body_executor.close()
        for client in (gateway.fetcher, webhooks):
            if client is not None:
                await client.close()
        if gateway.tracer is not None:
            gateway.tracer.export.close()

    return gateway, lifespan


def _fetcher(settings: Settings) -> PartFetcher | None:
    if not settings.fetch_hosts:
        return None
    from server.gateway.inference.url_parts import PartFetcher  # imports an HTTP client, which only gateways that fetch need
    from server.http.outbound import OutboundClient

    return PartFetcher(OutboundClient(settings.fetch_hosts, settings.fetch_networks), settings.max_body_bytes)


def _webhooks(gateway: GatewayState) -> WebhookSender | None:
    """Return the sender, if webhooks are allowed. Raises ValueError if there is no secret to sign them with."""
    settings = gateway.settings
    if not settings.webhook_hosts:
        return None
    from server.gateway.webhooks import WebhookSender, load_secrets
    from server.http.outbound import OutboundClient

    outbound = OutboundClient(settings.webhook_hosts, settings.webhook_networks)
    return WebhookSender(gateway.dispatcher.webhooks, outbound, load_secrets(settings), gateway.metrics, gateway.is_key_valid)
