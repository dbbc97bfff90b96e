"""Routes for operators: the service's status, its health, also while parts of it are broken, and metrics for Prometheus."""

from __future__ import annotations

from collections import Counter

from fastapi import APIRouter, Request
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from starlette.responses import JSONResponse, PlainTextResponse, Response

from server.gateway import model_directory
from server.gateway.app_state import GatewayState, gateway_state
from server.gateway.auth import middleware
from server.gateway.openapi import responses
from server.processes.supervisor_protocol import ExitReason
from server.queue.connect import RedisUnavailable
from server.queue.gateway.kept_values import SCENES
from server.queue.record import OPEN_STATES, STATES
from server.telemetry.metrics import CONTENT_TYPE, Families

router = APIRouter()


@router.get("/v1/status", tags=["operation"], summary="The service now and in the last 15 minutes", openapi_extra=responses.STATUS)
async def status(request: Request) -> Response:
    middleware.require_right("metrics", request)
    document = await gateway_state(request).status.read()
    return Response(document, media_type="application/json", headers={"Cache-Control": "no-store"})


@router.get("/health/live", tags=["health"], summary="Does the process run?")
async def live() -> Response:
    return JSONResponse({"live": True})


@router.get(
    "/health/ready",
    tags=["health"],
    summary="Can requests be answered?",
    description="200 when Redis answers and a ready worker exists for every default model, else 503 with the reason.",
    responses={
        503: {"description": "Not ready", "content": {"application/json": {"example": {"ready": False, "detail": "no worker is ready"}}}}
    },
)
async def ready(request: Request) -> Response:
    return _health("ready", await gateway_state(request).not_ready_reason())


@router.get(
    "/health/accepting",
    tags=["health"],
    summary="Can requests be accepted, with or without workers?",
    description="200 when Redis answers and the gateway does not drain: readiness of services whose workers start from zero.",
    responses={503: responses.not_ready({"accepting": False, "detail": "draining"})},
)
async def accepting(request: Request) -> Response:
    return _health("accepting", await gateway_state(request).not_accepting_reason())


def _health(state: str, reason: str | None) -> Response:
    return JSONResponse({state: True}) if reason is None else JSONResponse({state: False, "detail": reason}, 503)


@router.get(
    "/metrics",
    tags=["operation"],
    summary="Metrics in Prometheus' text format",
    response_class=PlainTextResponse,
    responses={
        200: {"description": "All metrics", "content": {"text/plain": {"example": "opsin_redis_up 1.0\n"}}},
        403: responses.FORBIDDEN["403"],
    },
)
async def metrics(request: Request) -> Response:
    middleware.require_right("metrics", request)
    gateway = gateway_state(request)
    return Response(gateway.metrics.render(await _read_redis(gateway)), media_type=CONTENT_TYPE)


async def _read_redis(gateway: GatewayState) -> Families:
    """Return the metrics that are read from Redis; only `opsin_redis_up` while Redis is unavailable."""
    up = GaugeMetricFamily("opsin_redis_up", "1 if Redis answered.", value=1)
    workers = GaugeMetricFamily("opsin_workers", "Workers that are alive.", labels=["state"])
    restarts = CounterMetricFamily("opsin_worker_restarts", "Workers that their supervisor had to restart.", labels=["reason"])
    served = GaugeMetricFamily("opsin_model_loaded", "Ready workers that serve the bundle.", labels=["model", "version"])
    refusing = GaugeMetricFamily("opsin_model_refused", "Workers that have the bundle and cannot load it.", labels=["model", "version"])
    labels = ["model", "version", "priority"]
    depth = GaugeMetricFamily("opsin_queue_depth", "Images waiting or running.", labels=labels)
    oldest = GaugeMetricFamily("opsin_queue_oldest_age_seconds", "Age of the oldest of them.", labels=labels)
    jobs = GaugeMetricFamily("opsin_jobs", "Asynchronous jobs that the service knows.", labels=["state"])
    memory = GaugeMetricFamily("opsin_redis_memory_bytes", "Memory that Redis uses.", labels=["kind"])
    ended = CounterMetricFamily("opsin_jobs_ended", "Asynchronous jobs that have ended since Redis began.", labels=["state"])
    try:
        fleet = await gateway.dispatcher.fleet.read()
        queues = await gateway.dispatcher.queues()
        restarted = await gateway.dispatcher.status.restarts()
        snapshot = await gateway.dispatcher.status.read(0, 0, 0)
    except RedisUnavailable:
        return Families((GaugeMetricFamily("opsin_redis_up", "1 if Redis answered.", value=0),))
    recorded, states = snapshot.records, Counter(worker.state for worker in fleet.workers)
    for state in ("starting", "ready", "draining"):
        workers.add_metric([state], states[state])
    for reason in ExitReason:
        restarts.add_metric([reason], restarted.get(reason, 0))
    for spec in fleet.specs.values():
        served.add_metric([spec.name, spec.version], len(model_directory.serving(fleet, spec)))
    for bundle in model_directory.unreadable(fleet):
        name, _, version = bundle.partition("@")
        served.add_metric([name, version], 0)
    refusals = Counter((bundle.name, bundle.version) for bundle in model_directory.refused_bundles(fleet))
    for identity in {*fleet.specs, *refusals}:
        refusing.add_metric(identity, refusals[identity])
    for queue in queues:
        name, _, version = queue.bundle.partition("@")
        depth.add_metric([name, version, queue.priority], queue.items)
        oldest.add_metric([name, version, queue.priority], queue.oldest_s)
    for kind, nbytes in snapshot.memory.items():
        memory.add_metric([kind], nbytes)
    lost = CounterMetricFamily(
        "opsin_jobs_lost", "Asynchronous jobs that failed because Redis lost data.", value=recorded.ended.get("lost", 0)
    )
    for state in STATES:
        jobs.add_metric([state], recorded.counts.get(state, 0))
        if state not in OPEN_STATES:
            ended.add_metric([state], recorded.ended.get(state, 0))
    results = GaugeMetricFamily(
        "opsin_result_bytes", "Results of asynchronous jobs that are kept, with their records.", value=recorded.result_bytes
    )
    scenes = GaugeMetricFamily("opsin_scenes", "Reconstructed scenes that can be asked again.", value=recorded.counts.get(SCENES, 0))
    return Families((up, workers, restarts, served, refusing, depth, oldest, jobs, ended, lost, results, scenes, memory))
