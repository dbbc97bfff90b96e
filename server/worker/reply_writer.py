"""Writing of results to the queue, as replies."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import cache
from queue import SimpleQueue
from typing import Any

from prometheus_client import Counter

from models.layers.stepwise import InvalidInput, JobTooLarge
from models.systems.actions.job_stats import STAGES
from server.queue.connect import RedisUnavailable
from server.queue.messages import Failure, Progress, Reply, WorkerTiming, from_numpy
from server.queue.worker.delivery import Delivery
from server.queue.worker.worker_queue import WorkerQueue
from server.telemetry import logs
from server.telemetry.metrics import BufferedHistogram, WorkerMetrics
from server.telemetry.tracing import TraceContext, Tracer, new_span_id
from server.worker.executors import ComputedBatch, DepartedJobs, FailedJob, JobOutputs, JobReport, Reports, Result, TooLarge, UnservedJobs

log = logs.get(__name__)


class ReplyWriter:
    """A writer of results to the queue: at once, or in a thread of its own while the next batch runs."""

    def __init__(self, queue: WorkerQueue, metrics: WorkerMetrics, tracer: Tracer | None = None) -> None:
        self._queue = queue
        self._metrics = metrics
        self._tracer = tracer
        self._write_queue: SimpleQueue[Result | None] = SimpleQueue()
        self._writing = threading.Lock()

    def put(self, result: Result) -> None:
        """Leave a result to the writing thread."""
        self._write_queue.put(result)

    def write_now_or_queue(self, result: Result) -> None:
        """Write a result now, or leave it to the writing thread if that is busy: without Redis it is for long, and slots must pull."""
        if not self._writing.acquire(blocking=False):
            self.put(result)
            return
        try:
            self._write(result)
        finally:
            self._writing.release()

    def write_forever(self) -> None:
        """Write results until `close`."""
        while (result := self._write_queue.get()) is not None:
            with self._writing:
                self._write(result)

    def _write(self, result: Result) -> None:
        try:
            _write(self._queue, result, self._metrics)
            if self._tracer is not None:
                _record_spans(self._tracer.export.put, result)
        except RedisUnavailable as away:
            log.error("results not written: their jobs run again", reason=str(away))

    def close(self, thread: threading.Thread, timeout: float) -> None:
        """Write the remaining results for at most `timeout` seconds. thread: the writing one."""
        self._write_queue.put(None)
        thread.join(timeout)
        if self._writing.acquire(timeout=timeout):
            self._writing.release()


def _write(queue: WorkerQueue, result: Result, metrics: WorkerMetrics) -> None:
    match result:
        case ComputedBatch():
            if result.answers:
                queue.acks.finish(_replies(queue.id, result))
            _report(queue, result.reports)
            _count(result, metrics)
        case Reports():
            _report(queue, result.reports)
        case DepartedJobs():
            for job in result.jobs:
                metrics.step_leaves.labels(*job.bundle.split("@"), result.reason).inc()
        case TooLarge(jobs=[first, *_]):
            metrics.out_of_memory.labels(*first.bundle.split("@")).inc()
        case FailedJob(job=job, error=InvalidInput() | JobTooLarge() as error):
            kind = "unusable-input" if isinstance(error, InvalidInput) else "excessive"
            if kind == "unusable-input":
                log.info("input refused", bundle=job.bundle, job=job.job.id, reason=str(error), **job.job.trace)
            _fail(queue, [job], kind, str(error))
            metrics.failures.labels(job.bundle.partition("@")[0], kind).inc()
        case FailedJob(job=job, error=error, traceback=raised):
            reason = f"{type(error).__name__}: {error}"
            log.error("model failed on a job", bundle=job.bundle, job=job.job.id, reason=reason, exception=raised, **job.job.trace)
            queue.acks.dead_letter(job, reason, kind="model-error")
            metrics.dead_letters.inc()
            metrics.failures.labels(job.bundle.partition("@")[0], "model-error").inc()
        case UnservedJobs(jobs=[first, *_] as jobs):
            _fail(queue, jobs, "unloaded", f"{first.bundle} was unloaded")


def _record_spans(put: Callable[..., None], result: Result) -> None:
    """Record spans of a batch and of its sampled jobs: when they waited, and when they ran."""
    now, offset_ns = time.monotonic(), time.time_ns() - time.monotonic_ns()

    def record(name: str, caller: TraceContext, times: tuple[float, float], **facts: Any) -> TraceContext:
        context = caller._replace(span_id=new_span_id())
        put(name, context, caller.span_id, times, offset_ns, **facts)
        return context

    if isinstance(result, FailedJob) and (caller := _sampled_caller(result.job)):
        record("inference", caller, (result.job.pulled_at, now), error=type(result.error).__name__)
    if not isinstance(result, ComputedBatch) or not (callers := list(filter(None, map(_sampled_caller, result.jobs)))):
        return
    facts = {"messaging.system": "redis", "messaging.destination.name": result.jobs[0].bundle}
    process = {**facts, "messaging.operation.type": "process", "messaging.batch.message_count": len(result.jobs)}
    links = list(dict.fromkeys(callers))
    batch = record("batch", callers[0], (result.started, now), kind="CONSUMER", attributes=process, links=links)
    for answer in result.answers:
        if caller := _sampled_caller(answer.job):
            receive = {**facts, "messaging.operation.type": "receive", "messaging.message.id": answer.job.job_id}
            started = answer.job.pulled_at + answer.batch_wait
            record("queue", caller, (answer.job.queued_at, started), kind="CONSUMER", attributes=receive)
            record("inference", caller, (started, result.started + result.seconds), links=[batch])


def _sampled_caller(job: Delivery) -> TraceContext | None:
    """Return the span of the request of a job, if it is sampled."""
    context = TraceContext.parse(job.job.trace.get("traceparent", ""))
    return context if context is not None and context.is_sampled else None


def _fail(queue: WorkerQueue, jobs: list[Delivery], kind: str, detail: str) -> None:
    failure = Failure(kind=kind, detail=detail)
    queue.acks.finish([(job, Reply(id=job.job.id, worker=queue.id, failure=failure)) for job in jobs])


def _replies(worker: str, batch: ComputedBatch) -> list[tuple[Delivery, Reply]]:
    now = time.monotonic()
    return [
        (
            answer.job,
            Reply(
                id=answer.job.job.id,
                worker=worker,
                arrays=from_numpy(answer.outputs),
                timing=WorkerTiming(
                    batch_wait_ms=answer.batch_wait * 1000,
                    inference_ms=answer.inference * 1000,
                    worker_ms=(now - answer.job.pulled_at) * 1000,
                    batch_size=len(batch.jobs),
                ),
            ),
        )
        for answer in batch.answers
    ]


def _report(queue: WorkerQueue, reports: list[JobReport]) -> None:
    try:
        queue.acks.progress([(report.job, _progress(queue.id, report)) for report in reports])
    except RedisUnavailable as away:
        log.warning("progress not written: the next report replaces it", jobs=len(reports), reason=str(away))


def _progress(worker: str, report: JobReport) -> Progress:
    preview = from_numpy(report.preview)
    return Progress(id=report.job.job.id, worker=worker, done=report.done, total=report.total, unit=report.unit, preview=preview)


def _count(batch: ComputedBatch, metrics: WorkerMetrics) -> None:
    batches, size, inference, wait = _metrics_of(metrics, batch.jobs[0].bundle)
    batches.inc()
    size.observe(len(batch.jobs))
    inference.observe(batch.seconds)
    labels = batch.jobs[0].bundle.split("@")
    if batch.is_new_shape:
        metrics.cold_batches.labels(*labels).inc()
    if batch.weight and not batch.made_no_progress:
        metrics.steps.labels(*labels).inc(len(batch.jobs))
        metrics.step_joins.labels(*labels).inc(batch.started_jobs)
        metrics.step_leaves.labels(*labels, "finished").inc(len(batch.answers))
    for answer in batch.answers:
        wait.observe(answer.batch_wait)
        _count_outputs(metrics, answer)


def _count_outputs(metrics: WorkerMetrics, answer: JobOutputs) -> None:
    """Count outputs of single tasks: queried points of scenes, and seconds of videos by stage."""
    labels, outputs = answer.job.bundle.split("@"), answer.outputs
    if "queries" in outputs:
        queried, grid = outputs["queries"].tolist()
        metrics.queries.labels(*labels).inc(queried)
        metrics.queries_saved.labels(*labels).inc(max(0, grid - queried))
        metrics.levels.labels(*labels).inc(int(outputs["levels"]))
        metrics.points.labels(*labels).inc(int(outputs["points"]))
    if "counts" in outputs:
        for counter, count in zip(metrics.video_counters, outputs["counts"].tolist(), strict=True):
            counter.labels(*labels).inc(count)
        for stage, seconds in zip(STAGES, outputs["stages"].tolist(), strict=True):
            metrics.watched_stages.labels(*labels, stage).inc(seconds)
    if "clip_counts" in outputs:
        decoded, waited, video, sound = outputs["clip_counts"].tolist()
        metrics.decoded_frames.labels(*labels).inc(decoded)
        metrics.watched_stages.labels(*labels, "decode").inc(waited)
        metrics.watched_seconds.labels(*labels).inc(video)
        metrics.sound_seconds.labels(*labels).inc(sound)


@cache
def _metrics_of(metrics: WorkerMetrics, bundle: str) -> tuple[Counter, BufferedHistogram, BufferedHistogram, BufferedHistogram]:
    """Return the metrics of one bundle. They are cached, since looking them up by label costs more than counting."""
    labels = bundle.split("@")
    return (
        metrics.batches.labels(*labels),
        metrics.notes.add(BufferedHistogram(metrics.batch_size.labels(*labels))),
        metrics.notes.add(BufferedHistogram(metrics.inference.labels(*labels))),
        metrics.notes.add(BufferedHistogram(metrics.batch_wait.labels(*labels))),
    )
