"""The gateway as an ASGI application."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Scope

from server.gateway import openai
from server.gateway.app_state import GatewayState
from server.gateway.auth.key_file import ANONYMOUS_KEY
from server.gateway.auth.middleware import AuthenticationMiddleware, RateLimiter
from server.gateway.inference.admission import REJECTIONS
from server.gateway.inference.error_mapping import error_to_problem
from server.gateway.jobs.service import JobDocument
from server.gateway.lifespan import assemble
from server.gateway.open_inference.errors import to_response
from server.gateway.openapi import document as openapi
from server.gateway.routes import embeddings, infer, jobs, models, monitoring, open_inference, pages, tasks
from server.gateway.status import StatusDocument
from server.http.middleware import RequestMiddleware
from server.http.problems import Problem, ProblemDocument, ProblemKind
from server.http.requests import CLIENT_CLOSED_REQUEST, allowed_methods
from server.queue.connect import RedisUnavailable
from server.quote import MAX_QUOTED_CHARS
from server.settings import Settings

DESCRIPTION = "Token-merged vision models as a batched, observable service. Also speaks the Open Inference Protocol v2 under `/v2`."
ROUTER_MODULES = (models, jobs, tasks, monitoring, open_inference)
STRUCTS = (models.ModelList, models.ModelDetails, JobDocument, StatusDocument, ProblemDocument, openai.OpenAIErrorDocument)


def create_app(settings: Settings) -> GatewayApp:
    """Return an app that connects to `settings.redis_url` when it starts.

    Raises ValueError if the settings are unusable, and OSError if the API key file cannot be read."""
    gateway, lifespan = assemble(settings)
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
            authenticate=None if keys is None else AuthenticationMiddleware(keys, RateLimiter(lambda: gateway.dispatcher.gateways)),
            refuse=self._refuse_early,
            wrap=self._with_cors if settings.cors_origins else None,
            tracer=gateway.tracer,
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
