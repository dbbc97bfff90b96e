"""From results to replies in the queue."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from functools import cache
from queue import SimpleQueue

from prometheus_client import Counter, Histogram

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


class Answers:
    """Writes results to the queue: at once, or in a thread of its own while the next batch computes."""

    def __init__(self, queue: WorkerQueue, metrics: WorkerMetrics) -> None:
        self._queue = queue
        self._metrics = metrics
        self._later: SimpleQueue[Result | None] = SimpleQueue()
        self._writing = threading.Lock()

    def put(self, result: Result) -> None:
        """Write it soon."""
        self._later.put(result)

    def write(self, result: Result) -> None:
        with self._writing:
            try:
                _write(self._queue, result, self._metrics)
            except RedisAway as away:
                log.error("results not written: their jobs run again", reason=str(away))

    def write_forever(self) -> None:
        """Until `close`."""
        while (result := self._later.get()) is not None:
            self.write(result)

    def close(self, thread: threading.Thread, timeout: float) -> None:
        """Write what there is, for at most `timeout` seconds; `thread` is the one that writes forever."""
        self._later.put(None)
        thread.join(timeout)
        if self._writing.acquire(timeout=timeout):
            self._writing.release()


def _write(queue: WorkerQueue, result: Result, metrics: WorkerMetrics) -> None:
    match result:
        case Answered():
            queue.finish(_replies(queue.id, result))
            _count(result, metrics)
        case Refused():
            reason = f"{type(result.error).__name__}: {result.error}"
            log.error("model failed on a job", bundle=result.job.bundle, job=result.job.job.id, reason=reason, **result.job.job.trace)
            queue.dead_letter(result.job, reason, kind="model-error")
            metrics.dead_letters.inc()
            metrics.failures.labels(result.job.bundle.partition("@")[0], "model-error").inc()
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
    batches, size, inference, wait = _metrics_of(metrics, batch.jobs[0].bundle)
    batches.inc()
    size.observe(len(batch.jobs))
    inference.observe(batch.seconds)
    for job in batch.jobs:
        wait.observe(batch.started - job.pulled_at)


@cache
def _metrics_of(metrics: WorkerMetrics, bundle: str) -> tuple[Counter, Histogram, Histogram, Histogram]:
    """Those of one bundle: finding them by their labels costs more than counting."""
    labels = bundle.split("@")
    return (
        metrics.batches.labels(*labels),
        metrics.batch_size.labels(*labels),
        metrics.inference.labels(*labels),
        metrics.batch_wait.labels(*labels),
    )
