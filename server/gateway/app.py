"""The gateway as an ASGI application."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Scope

from server.concurrency import TimerWheel
from server.gateway import openai
from server.gateway.app_state import GatewayState
from server.gateway.auth.key_file import ANONYMOUS_KEY
from server.gateway.auth.middleware import AuthenticationMiddleware, KeyRing, RateLimiter
from server.gateway.catalog.model_directory import ModelDirectory
from server.gateway.catalog.worker_grace import WorkerLossWatchdog
from server.gateway.fair_executor import BodyExecutor, FairExecutor, HeavyClients
from server.gateway.inference.admission import REJECTIONS, Admission
from server.gateway.inference.error_mapping import error_to_problem
from server.gateway.inference.preparation import InferenceRunner
from server.gateway.inference.rendering import ResponseRenderer
from server.gateway.inference.text_cache import TextCache
from server.gateway.jobs.event_subscriptions import EventSubscriptions
from server.gateway.jobs.service import JobDocument, JobService
from server.gateway.open_inference.errors import to_response
from server.gateway.openapi import document as openapi
from server.gateway.routes import embeddings, infer, jobs, models, monitoring, open_inference, pages, tasks
from server.gateway.status import StatusDocument, StatusReport
from server.http.middleware import RequestMiddleware
from server.http.problems import Problem, ProblemDocument, ProblemKind
from server.http.requests import CLIENT_CLOSED_REQUEST, allowed_methods
from server.http.url_allowlist import host_and_port
from server.media.images import ImageDecoder
from server.media.limits import MediaLimits
from server.queue.errors import RedisUnavailable
from server.queue.gateway.dispatcher import Dispatcher
from server.quote import MAX_QUOTED_CHARS
from server.settings import Settings
from server.telemetry.metrics import GatewayMetrics

if TYPE_CHECKING:
    from server.gateway.inference.url_parts import PartFetcher
    from server.gateway.webhooks import WebhookSender

DESCRIPTION = "Token-merged vision models as a batched, observable service. Also speaks the Open Inference Protocol v2 under `/v2`."
ROUTER_MODULES = (models, jobs, tasks, monitoring, open_inference)
STRUCTS = (models.ModelList, models.ModelDetails, JobDocument, StatusDocument, ProblemDocument, openai.OpenAIErrorDocument)


def create_app(settings: Settings) -> GatewayApp:
    """Return an app that connects to `settings.redis_url` when it starts.

    Raises ValueError if the settings are unusable, and OSError if the API key file cannot be read."""
    if settings.redis_url is None:
        raise ValueError("a gateway needs a queue: set OPSIN_REDIS_URL, or let `opsin serve` start a private one")
    keys = None if settings.api_keys_file is None else KeyRing(settings.api_keys_file)
    dispatcher = Dispatcher(settings.redis_url, settings)
    metrics = GatewayMetrics(REJECTIONS.values())
    dispatcher.beat.count_items = metrics.count_items
    dispatcher.beat.tally = metrics.history_counts
    directory = ModelDirectory(dispatcher.fleet, settings)
    watchdog = WorkerLossWatchdog(settings, directory)
    timers = TimerWheel()
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
        admission=Admission(settings, dispatcher.reservations, metrics, timers),
        runner=InferenceRunner(dispatcher, watchdog, metrics, decoder, executor, TextCache(dispatcher.vectors, settings.text_cache_bytes)),
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

    app = FastAPI(
        title="Opsin",
        version=version("opsin"),
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect would name the host of the client's Host header, without the prefix of a proxy
        docs_url=None,  # `pages` has one with a content policy
        redoc_url=None,
    )
    app.state.gateway = gateway
    for routes in ROUTER_MODULES:
        app.include_router(routes.router)
    app.include_router(pages.router)
    app.router.routes.append(pages.API_FILES)
    app.router.routes.extend([*tasks.ROUTES, *embeddings.ROUTES])  # POSTs take the fast path; other methods get 405
    if settings.playground:
        app.router.routes.extend(pages.ROUTES)
    for kind in (Problem, RedisUnavailable, Exception):
        app.add_exception_handler(kind, _handle_error)
    app.add_exception_handler(HTTPException, _handle_http_error)
    app.add_exception_handler(ClientDisconnect, _handle_disconnect)

    @cache
    def document() -> dict[str, Any]:
        responses = [endpoint.response for endpoint in tasks.ENDPOINTS.values()]
        paths = {
            path: {"post": openapi.task_operation(endpoint.interface, endpoint.response.__name__, fetches=bool(settings.fetch_hosts))}
            for path, endpoint in tasks.ENDPOINTS.items()
        }
        paths |= {embeddings.PATH: {"post": embeddings.operation()}}
        paths |= {path: {"post": infer.operation(path)} for path in infer.INFER_PATHS}
        described = [route for routes in ROUTER_MODULES for route in routes.router.routes]
        return openapi.describe(app, paths, (*responses, embeddings.EmbeddingList, *STRUCTS), described)

    app.openapi = document  # type: ignore[method-assign]
    return GatewayApp(app, gateway)


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


CORS_EXPOSED_HEADERS = (
    "X-Request-ID",
    "Retry-After",
    "Location",
    "Preference-Applied",
    "Server-Timing",
    "Inference-Header-Content-Length",
    "X-Model",
    "X-Seed",
    "X-Steps",
    "X-Method",
    "X-People",
    "X-Points",
    "X-Queries",
    "X-Metric",
)
"""Headers of responses that pages of another origin may read."""


class GatewayApp(RequestMiddleware):
    """The ASGI application: FastAPI's routes and those of inference, behind the middleware of all requests."""

    def __init__(self, app: FastAPI, gateway: GatewayState) -> None:
        settings, keys, self.gateway = gateway.settings, gateway.keys, gateway
        super().__init__(
            app,
            [*tasks.ROUTES, *embeddings.ROUTES, *infer.ROUTES],
            body_bytes=settings.queue_max_bytes,
            connections=settings.max_connections,
            trusted_proxies=settings.trusted_proxies,
            state={"api_key": ANONYMOUS_KEY} if keys is None else {},
            authenticate=None if keys is None else AuthenticationMiddleware(keys, RateLimiter(lambda: gateway.dispatcher.beat.gateways)),
            refuse=self._refuse_early,
            wrap=self._with_cors if settings.cors_origins else None,
        )

    def _with_cors(self, app: ASGIApp) -> ASGIApp:
        return CORSMiddleware(
            app,
            allow_origins=self.gateway.settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=CORS_EXPOSED_HEADERS,
        )

    def _refuse_early(self, problem: Problem, scope: Scope) -> Response:
        self.gateway.metrics.rejected.labels(REJECTIONS[problem.kind]).inc()
        if scope["path"] == embeddings.PATH:
            return openai.to_response(problem)
        if scope["path"] == "/v2" or scope["path"].startswith("/v2/"):
            return to_response(problem)
        return problem.to_response(scope["state"]["request_id"])


async def _handle_error(request: Request, error: Exception) -> Response:
    """Answer with a problem document rather than Starlette's plain text; Starlette raises the error again, and the middleware logs it."""
    return error_to_problem(error, request.state.request_id).to_response(request.state.request_id)


async def _handle_http_error(request: Request, error: Exception) -> Response:
    """Answer for an unknown path or method, which the router refuses."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        problem = Problem(ProblemKind.METHOD_NOT_ALLOWED, f"{request.url.path[:MAX_QUOTED_CHARS]} does not answer {request.method}")
    else:
        problem = Problem(ProblemKind.NOT_FOUND, f"not found: {request.url.path[:MAX_QUOTED_CHARS]}; see /docs for the available routes")
    response = problem.to_response(request.state.request_id)
    response.headers.update(error.headers or {})
    if error.status_code == 405:
        allowed = allowed_methods([route for routes in ROUTER_MODULES for route in routes.router.routes], request.scope)
        response.headers["Allow"] = ", ".join(sorted({response.headers["Allow"], *allowed}))  # the router names the first route's alone
    return response


async def _handle_disconnect(_request: Request, _error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)
