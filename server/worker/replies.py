"""From results to replies: the thread that answers, so that computing need not wait for the queue."""

from __future__ import annotations

import time
from dataclasses import dataclass
from queue import SimpleQueue

from server.queue.delivery import Delivery
from server.queue.errors import RedisAway
from server.queue.job import Array, Failure, Reply, WorkerTiming
from server.queue.worker_side import WorkerQueue
from server.telemetry import logs
from server.telemetry.metrics import WorkerMetrics
from server.worker.executors import Answered, Refused

log = logs.get(__name__)


@dataclass(frozen=True)
class Unserved:
    """Jobs of a bundle that was unloaded while they waited."""

    jobs: list[Delivery]


Result = Answered | Refused | Unserved


def answer(queue: WorkerQueue, results: SimpleQueue[Result | None], metrics: WorkerMetrics) -> None:
    """Write every result to the queue until None comes."""
    while (result := results.get()) is not None:
        try:
            _answer(queue, result, metrics)
        except RedisAway as away:
            log.error("results lost: the gateways will send the jobs again", reason=str(away))


def _answer(queue: WorkerQueue, result: Result, metrics: WorkerMetrics) -> None:
    match result:
        case Answered():
            queue.finish(_replies(queue.id, result))
            _count(result, metrics)
        case Refused():
            reason = f"{type(result.error).__name__}: {result.error}"
            log.error("model failed on a job", bundle=result.job.bundle, job=result.job.job.id, reason=reason, **result.job.job.trace)
            queue.dead_letter(result.job, reason, kind="model-error")
            metrics.dead_letters.inc()
            metrics.failures.labels(_name(result.job), "model-error").inc()
        case Unserved():
            gone = [Failure(kind="unloaded", detail=f"{job.bundle} was unloaded") for job in result.jobs]
            queue.finish([(job, Reply(id=job.job.id, worker=queue.id, failure=why)) for job, why in zip(result.jobs, gone, strict=True)])


def _replies(worker: str, batch: Answered) -> list[tuple[Delivery, Reply]]:
    now = time.monotonic()
    return [
        (
            job,
            Reply(
                id=job.job.id,
                worker=worker,
                arrays={name: Array.of(rows[i]) for name, rows in batch.outputs.items()},
                timing=WorkerTiming(
                    batch_wait_ms=(batch.started - job.pulled_at) * 1000,
                    inference_ms=batch.seconds * 1000,
                    worker_ms=(now - job.pulled_at) * 1000,
                    batch_size=len(batch.jobs),
                ),
            ),
        )
        for i, job in enumerate(batch.jobs)
    ]


def _count(batch: Answered, metrics: WorkerMetrics) -> None:
    labels = batch.jobs[0].bundle.split("@")
    metrics.batches.labels(*labels).inc()
    metrics.batch_size.labels(*labels).observe(len(batch.jobs))
    metrics.inference.labels(*labels).observe(batch.seconds)
    for job in batch.jobs:
        metrics.batch_wait.labels(*labels).observe(batch.started - job.pulled_at)


def _name(job: Delivery) -> str:
    return job.bundle.partition("@")[0]
