"""`GET /metrics` for Prometheus."""

from __future__ import annotations

from collections import Counter

from fastapi import APIRouter, Request
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from starlette.responses import PlainTextResponse, Response

from server.gateway import directory, gateway
from server.gateway.gateway import Gateway
from server.process.supervision import Reason
from server.queue.errors import RedisAway
from server.queue.record import OPEN, STATES
from server.queue.scenes import SCENES
from server.telemetry.metrics import CONTENT_TYPE, Families

router = APIRouter(tags=["operation"])


@router.get(
    "/metrics",
    summary="Metrics in Prometheus' text format",
    response_class=PlainTextResponse,
    responses={200: {"description": "All metrics", "content": {"text/plain": {"example": "opsin_redis_up 1.0\n"}}}},
)
async def metrics(request: Request) -> Response:
    here = gateway.of(request)
    return Response(here.metrics.render(await _read_redis(here)), media_type=CONTENT_TYPE)


async def _read_redis(here: Gateway) -> Families:
    """What Redis knows at this moment; only that it is away, if it is."""
    up = GaugeMetricFamily("opsin_redis_up", "1 if Redis answered.", value=1)
    workers = GaugeMetricFamily("opsin_workers", "Workers that are alive.", labels=["state"])
    restarts = CounterMetricFamily("opsin_worker_restarts", "Workers that their supervisor had to restart.", labels=["reason"])
    served = GaugeMetricFamily("opsin_model_loaded", "Ready workers that serve the bundle.", labels=["model", "version"])
    labels = ["model", "version", "priority"]
    depth = GaugeMetricFamily("opsin_queue_depth", "Images waiting or running.", labels=labels)
    oldest = GaugeMetricFamily("opsin_queue_oldest_age_seconds", "Age of the oldest of them.", labels=labels)
    jobs = GaugeMetricFamily("opsin_jobs", "Asynchronous jobs that the service knows.", labels=["state"])
    ended = CounterMetricFamily("opsin_jobs_ended", "Asynchronous jobs that have ended since Redis began.", labels=["state"])
    try:
        fleet = await here.dispatcher.fleet()
        depths = await here.dispatcher.depth()
        restarted = await here.dispatcher.status.restarts()
        recorded = (await here.dispatcher.status.read(0, 0, 0)).records
    except RedisAway:
        return Families((GaugeMetricFamily("opsin_redis_up", "1 if Redis answered.", value=0),))
    states = Counter(worker.state for worker in fleet.workers)
    for state in ("starting", "ready", "draining"):
        workers.add_metric([state], states[state])
    for reason in Reason:
        restarts.add_metric([reason], restarted.get(reason, 0))
    for spec in fleet.specs.values():
        served.add_metric([spec.name, spec.version], len(directory.serving(fleet, spec)))
    for (bundle, priority), queue in sorted(depths.items()):
        name, _, version = bundle.partition("@")
        depth.add_metric([name, version, priority], queue.items)
        oldest.add_metric([name, version, priority], queue.oldest_age_s)
    for state in STATES:
        jobs.add_metric([state], recorded.counts.get(state, 0))
        if state not in OPEN:
            ended.add_metric([state], recorded.ended.get(state, 0))
    results = GaugeMetricFamily(
        "opsin_result_bytes", "Results of asynchronous jobs that are kept, with their records.", value=recorded.result_bytes
    )
    scenes = GaugeMetricFamily("opsin_scenes", "Reconstructed scenes that can be asked again.", value=recorded.counts.get(SCENES, 0))
    return Families((up, workers, restarts, served, depth, oldest, jobs, ended, results, scenes))
