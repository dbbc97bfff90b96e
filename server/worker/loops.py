"""The loops of a worker's threads that move jobs: from the queue to the slots, and through them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress

import torch

from server.queue.delivery import Beside, Delivery
from server.queue.errors import RedisAway
from server.queue.worker_side import WorkerQueue
from server.telemetry import logs
from server.telemetry.metrics import WorkerMetrics
from server.worker.batches import Running
from server.worker.fetching import Fetching
from server.worker.loaded_bundles import LoadedBundles
from server.worker.replies import Answers
from server.worker.results import Computed, Left, Result, TooLarge, Unserved
from server.worker.slots import Slots

log = logs.get(__name__)

BLOCK_MS = 500
RECLAIM_EVERY = 1.0
AWAY_PAUSE = 0.25
LOADING_PAUSE = 0.02
"""Until the first bundle is loaded: clients wait for it when a worker restarts."""
FRESH = 0.05
"""Seconds. Jobs that were queued or looked at so shortly before their batch need no look at deadline, cancellation and gateway."""


def receive(queue: WorkerQueue, slots: Slots, bundles: LoadedBundles, fetching: Fetching, metrics: WorkerMetrics) -> None:
    """Pull jobs as slots want them, until the worker drains."""
    next_look = 0.0
    away = False
    while (pull := slots.next_pull()) is not None:
        served = bundles.served()
        if not served:
            time.sleep(LOADING_PAUSE)
            continue
        try:
            if time.monotonic() >= next_look:
                if _take_over(queue, slots, served):
                    metrics.redeliveries.inc()
                    continue
                next_look = time.monotonic() + RECLAIM_EVERY
            jobs = queue.take(served, pull.items, BLOCK_MS if pull.block else 0, pull.long)
        except RedisAway as error:
            if not away:
                log.warning("queue away", reason=str(error))
            away = True
            time.sleep(AWAY_PAUSE)
            continue
        if away:
            log.info("queue back")
        away = False
        slots.add([job for job in jobs if isinstance(job, Delivery)])
        fetching.put([job for job in jobs if isinstance(job, Beside)])
    fetching.close()


def _take_over(queue: WorkerQueue, slots: Slots, served: list[str]) -> bool:
    """One job that a worker may have died of, if there is one, to run alone.

    Where what runs is not recorded, it is claimed when nothing else runs here, and nothing does until it has ended."""
    if not slots.may_reclaim or not queue.has_orphans(served):
        return False
    if queue.records_suspects:
        orphan = queue.reclaim(served)
        slots.add([orphan] if orphan is not None else [])
        return orphan is not None
    with slots.quiet() as quiet:
        orphan = queue.reclaim(served) if quiet else None
        if orphan is not None:
            slots.add([orphan])
    return orphan is not None


def compute(queue: WorkerQueue, slots: Slots, bundles: LoadedBundles, answers: Answers, threads: int, slot: int) -> None:
    """Schedule → run → answer, in one slot, until the worker is drained."""
    torch.set_num_threads(threads)
    while (running := _next(queue, slots, slot)) is not None:
        latest: Result | None = None
        going_on: list[Delivery] = []
        for result in _run(queue, slots, bundles, running, slot):
            if latest is not None:
                answers.put(latest)
            latest = result
            going_on += result.going_on if isinstance(result, Computed) else []
        if latest is not None and running.bucket.alone and not queue.records_suspects:
            answers.write(latest)  # before anything else may start: until then a death would be charged to it
            latest = None
        finish = slots.finish(running, going_on)
        if latest is not None:
            # while another batch could run, answering must not keep this slot from it; what is reported of steps stays in order
            answers.write(latest) if finish.idle and not running.long else answers.put(latest)
        if finish.leaving:
            leave(queue, bundles, answers, finish.leaving)


def leave(queue: WorkerQueue, bundles: LoadedBundles, answers: Answers, jobs: list[Delivery]) -> None:
    """Hand jobs back between two of their steps."""
    for job in jobs:
        if (executor := bundles.executor(job.queue)) is not None:
            executor.drop([job])
    answers.put(Left(jobs, "handed_back"))
    try:
        queue.hand_back(jobs)
    except RedisAway as away:
        log.error("jobs not handed back: other workers will find them by themselves", jobs=len(jobs), reason=str(away))


def _next(queue: WorkerQueue, slots: Slots, slot: int) -> Running | None:
    """The next batch of this slot; while there is none, nothing that this slot ran is suspected of what others run."""
    if not queue.records_suspects:
        return slots.take()
    running = slots.take(wait=False)
    if running is not None:
        return running
    with suppress(RedisAway):
        queue.end(slot)
    return slots.take()


def _run(queue: WorkerQueue, slots: Slots, bundles: LoadedBundles, running: Running, slot: int) -> Iterator[Result]:
    jobs = _still_wanted(queue, running, slot)
    executor = bundles.executor(running.bucket.queue)
    if executor is None:
        yield Unserved(jobs)
        return
    if len(jobs) < len(running.jobs):
        kept = {job.entry_id for job in jobs}
        gone = [job for job in running.jobs if job.entry_id not in kept]
        executor.drop(gone)
        if running.long:
            yield Left(gone, "unwanted")
    for result in executor.run(jobs) if jobs else ():
        slots.progress(running)
        if isinstance(result, TooLarge):
            log.warning("out of memory: batch halved", bundle=running.bucket.bundle, size=result.size)
            slots.too_large(running.bucket, round(sum(map(executor.weight, result.jobs))))
            continue
        if isinstance(result, Computed) and len(result.jobs) == len(jobs) and not result.cold:
            slots.measured(running.bucket, result.size, result.seconds)
        yield result


def _still_wanted(queue: WorkerQueue, running: Running, slot: int) -> list[Delivery]:
    fresh = all(running.started - job.checked_at < FRESH for job in running.jobs)
    try:
        if queue.records_suspects:
            return queue.begin(running.jobs, slot)
        return running.jobs if fresh else queue.still_wanted(running.jobs)
    except RedisAway:
        return running.jobs
