"""The loops of a worker's threads that move jobs: from the queue to the slots, and through them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from server.queue.delivery import Delivery
from server.queue.errors import RedisAway
from server.queue.worker_side import WorkerQueue
from server.telemetry import logs
from server.telemetry.metrics import WorkerMetrics
from server.worker.executors import Answered, TooLarge
from server.worker.loaded_bundles import LoadedBundles
from server.worker.replies import Answers, Result, Unserved
from server.worker.slots import Running, Slots

log = logs.get(__name__)

BLOCK_MS = 500
RECLAIM_EVERY = 1.0
AWAY_PAUSE = 0.25
LOADING_PAUSE = 0.02
"""Until the first bundle is loaded: clients wait for it when a worker restarts."""
FRESH = 0.05
"""Seconds. Jobs that were queued or looked at so shortly before their batch need no look at deadline, cancellation and gateway."""


def receive(queue: WorkerQueue, slots: Slots, bundles: LoadedBundles, metrics: WorkerMetrics) -> None:
    """Pull jobs as slots want them, until the worker drains."""
    next_reclaim = 0.0
    away = False
    while (pull := slots.next_pull()) is not None:
        served = bundles.served()
        if not served:
            time.sleep(LOADING_PAUSE)
            continue
        try:
            if time.monotonic() >= next_reclaim and slots.may_reclaim:
                if _take_over(queue, slots, served):
                    metrics.redeliveries.inc()
                    continue
                next_reclaim = time.monotonic() + RECLAIM_EVERY
            jobs = queue.pull(served, pull.items, BLOCK_MS if pull.block else 0)
        except RedisAway as error:
            if not away:
                log.warning("queue away", reason=str(error))
            away = True
            time.sleep(AWAY_PAUSE)
            continue
        if away:
            log.info("queue back")
        away = False
        if jobs:
            slots.add(jobs)
    slots.intake_ended()


def _take_over(queue: WorkerQueue, slots: Slots, served: list[str]) -> bool:
    """One job of a dead worker, if there is one: claimed when nothing else runs here, so that it runs alone from then on."""
    if not queue.has_orphans(served):
        return False
    with slots.quiet() as quiet:
        orphan = queue.reclaim(served) if quiet else None
        if orphan is not None:
            slots.add([orphan])
    return orphan is not None


def compute(queue: WorkerQueue, slots: Slots, bundles: LoadedBundles, answers: Answers, threads: int) -> None:
    """Schedule → run → answer, in one slot, until the worker is drained."""
    torch.set_num_threads(threads)
    while (running := slots.take()) is not None:
        latest: Result | None = None
        for result in _run(queue, slots, bundles, running):
            if latest is not None:
                answers.put(latest)
            latest = result
        if latest is not None and running.bucket.alone:
            answers.write(latest)  # before anything else may start: until then a death would be charged to it
            latest = None
        idle = slots.finish(running)
        if latest is not None:
            # while another batch could run, answering must not keep this slot from it
            answers.write(latest) if idle else answers.put(latest)


def _run(queue: WorkerQueue, slots: Slots, bundles: LoadedBundles, running: Running) -> Iterator[Result]:
    jobs = _still_wanted(queue, running)
    executor = bundles.executor(running.bucket.queue)
    if executor is None:
        yield Unserved(jobs)
    elif jobs:
        for result in executor.run(jobs):
            slots.progress(running)
            if isinstance(result, TooLarge):
                log.warning("out of memory: batch halved", bundle=running.bucket.bundle, size=result.size)
                slots.too_large(running.bucket, result.size)
                continue
            if isinstance(result, Answered) and len(result.jobs) == len(jobs):
                slots.measured(running.bucket, len(jobs), result.seconds)
            yield result


def _still_wanted(queue: WorkerQueue, running: Running) -> list[Delivery]:
    if all(running.started - job.checked_at < FRESH for job in running.jobs):
        return running.jobs
    try:
        return queue.still_wanted(running.jobs)
    except RedisAway:
        return running.jobs
