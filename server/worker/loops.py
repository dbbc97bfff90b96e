"""The loops of a worker's threads that move jobs: from the queue to the slots, and through them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import torch

from models.bundle import BundleError
from server.queue.delivery import Beside, Delivery
from server.queue.errors import RedisAway
from server.queue.worker_side import WorkerQueue
from server.telemetry import logs
from server.telemetry.metrics import WorkerMetrics
from server.worker.batches import Pull, Running
from server.worker.executors import Executor
from server.worker.fetching import Fetching
from server.worker.loaded_bundles import LoadedBundles
from server.worker.replies import Answers
from server.worker.results import Computed, Left, Refused, Report, Reports, Result, TooLarge, Unserved
from server.worker.slots import Slots

log = logs.get(__name__)

RECLAIM_EVERY = 1.0
AWAY_PAUSE = 0.25
LOADING_PAUSE = 0.02
"""Until the first bundle is loaded: clients wait for it when a worker restarts."""
BRIEF = 0.2
"""Seconds. Steps below it do not wait for the answer to who is still wanted: a job that has been cancelled may take one more of them."""
FRESH = 0.05
"""Seconds. Jobs that were queued or looked at so shortly before their batch need no look at deadline, cancellation and gateway."""


class Receiver:
    """Looks at the queue, for one thread at a time."""

    def __init__(self, queue: WorkerQueue, slots: Slots, bundles: LoadedBundles, fetching: Fetching, metrics: WorkerMetrics) -> None:
        self._queue = queue
        self._slots = slots
        self._bundles = bundles
        self._fetching = fetching
        self._metrics = metrics
        self._next_reclaim = 0.0
        self._away = False

    def look(self, pull: Pull) -> None:
        """Pull jobs as the slots want them."""
        found: list[Delivery] = []
        try:
            found = self._look(pull)
        except RedisAway as error:
            if not self._away:
                log.warning("queue away", reason=str(error))
            self._away = True
            time.sleep(AWAY_PAUSE)
        finally:
            self._slots.looked(found)

    def _look(self, pull: Pull) -> list[Delivery]:
        served = self._bundles.served()
        if not served:
            time.sleep(LOADING_PAUSE)
            return []
        if time.monotonic() >= self._next_reclaim:
            if _take_over(self._queue, self._slots, served):
                self._metrics.redeliveries.inc()
                return []
            self._next_reclaim = time.monotonic() + RECLAIM_EVERY
        jobs = self._queue.take(served, pull.items, int(pull.block * 1000), pull.long)
        if self._away:
            log.info("queue back")
        self._away = False
        self._fetching.put([job for job in jobs if isinstance(job, Beside)])
        return [job for job in jobs if isinstance(job, Delivery)]


def _take_over(queue: WorkerQueue, slots: Slots, served: list[str]) -> bool:
    """One job that a worker may have died of, if there is one, to run alone."""
    orphan = queue.reclaim(served) if slots.may_reclaim else None
    if orphan is not None:
        slots.add([orphan])
    return orphan is not None


def work(queue: WorkerQueue, slots: Slots, receiver: Receiver, bundles: LoadedBundles, answers: Answers, threads: int, hand: int) -> None:
    """Look or, with what was found, schedule → run → answer, until the worker is drained. There is one hand more than there are slots."""
    torch.set_num_threads(threads)
    while (task := slots.next()) is not None:
        if isinstance(task, Running):
            _compute(queue, slots, bundles, answers, task, hand)
        else:
            receiver.look(task)


def take_steps(queue: WorkerQueue, slots: Slots, bundles: LoadedBundles, answers: Answers, threads: int, hand: int) -> None:
    """The steps of long jobs, until the worker is drained. There are as many such hands as slots."""
    torch.set_num_threads(threads)
    ran = False
    while (running := _next_step(queue, slots, hand, ran=ran)) is not None:
        ran = True
        _compute(queue, slots, bundles, answers, running, hand)


def _next_step(queue: WorkerQueue, slots: Slots, hand: int, *, ran: bool) -> Running | None:
    """Before this hand waits, nothing that it `ran` is suspected of what others run."""
    if ran:
        if (running := slots.next_step(wait=False)) is not None:
            return running
        with suppress(RedisAway):
            queue.end(hand)
    return slots.next_step()


def _compute(queue: WorkerQueue, slots: Slots, bundles: LoadedBundles, answers: Answers, running: Running, hand: int) -> None:
    latest: Result | None = None
    going_on: list[Delivery] = []
    unloadable: list[Delivery] = []
    for result in _run(queue, slots, bundles, running, hand):
        if isinstance(result, Refused) and isinstance(result.error, BundleError):
            bundles.lost(running.bucket.queue, str(result.error))
            unloadable.append(result.job)
            continue
        if latest is not None:
            answers.put(latest)
        latest = result
        if isinstance(result, Reports):
            answers.put(result)  # the next result may be long in coming
            latest = None
        if isinstance(result, Computed):
            going_on += result.going_on
        if isinstance(result, Left):
            going_on = [job for job in going_on if job not in result.jobs]
    finish = slots.finish(running, going_on)
    if latest is not None:
        # while another batch could run, answering must not keep this slot from it; what is reported of steps stays in order
        answers.write_in_turn(latest) if finish.idle and not running.long else answers.put(latest)
    if finish.leaving:
        leave(queue, bundles, answers, finish.leaving)
    if unloadable:
        _hand_back(queue, unloadable)


def leave(queue: WorkerQueue, bundles: LoadedBundles, answers: Answers, jobs: list[Delivery]) -> None:
    """Hand jobs back between two of their steps."""
    for job in jobs:
        if (executor := bundles.executor(job.queue)) is not None:
            executor.drop([job])
    answers.put(Left(jobs, "handed_back"))
    _hand_back(queue, jobs)


def _hand_back(queue: WorkerQueue, jobs: list[Delivery]) -> None:
    try:
        queue.hand_back(jobs)
    except RedisAway as away:
        log.error("jobs not handed back: other workers will find them by themselves", jobs=len(jobs), reason=str(away))


def _run(queue: WorkerQueue, slots: Slots, bundles: LoadedBundles, running: Running, hand: int) -> Iterator[Result]:
    executor = bundles.executor(running.bucket.queue)
    fresh = not running.bucket.alone and all(running.started - job.checked_at < FRESH for job in running.jobs)
    wanted = _ask_for_wanted(queue, running, hand, checked=fresh)
    if executor is None:
        yield Unserved(wanted())
        return
    # what came just now, or has started and takes a brief step, runs in any case: it need not wait for the answer
    later = fresh or (running.expected_end - running.started < BRIEF and executor.all_started(running.jobs))
    jobs = running.jobs if later else wanted()
    yield from _dropped(executor, running, jobs)
    if begun := [Report(job, 0, 0, "") for job in jobs if job.job.progress and not executor.all_started([job])]:
        yield Reports(begun)
    for result in executor.run(jobs) if jobs else ():
        slots.progress(running)
        if isinstance(result, TooLarge):
            log.warning("out of memory: batch halved", bundle=running.bucket.bundle, size=result.size)
            slots.too_large(running.bucket, round(sum(map(executor.weight, result.jobs))))
            continue
        if isinstance(result, Computed) and len(result.jobs) == len(jobs) and not result.cold:
            slots.measured(running, result.size, result.seconds)
        yield result
    if later:
        yield from _dropped(executor, running, wanted())


def _dropped(executor: Executor, running: Running, wanted: list[Delivery]) -> Iterator[Result]:
    """Those of a batch that are not wanted any more leave."""
    if len(wanted) == len(running.jobs):
        return
    kept = {job.entry_id for job in wanted}
    gone = [job for job in running.jobs if job.entry_id not in kept]
    executor.drop(gone)
    if running.long:
        yield Left(gone, "unwanted")


def _ask_for_wanted(queue: WorkerQueue, running: Running, hand: int, *, checked: bool) -> Callable[[], list[Delivery]]:
    """A function that tells which jobs of a batch are still wanted. The record of what runs is on its way when this returns."""
    try:
        answer = queue.begin_soon(running.jobs, hand, checked=checked)
    except RedisAway:
        return lambda: running.jobs

    def wanted() -> list[Delivery]:
        try:
            return answer()
        except RedisAway:
            return running.jobs

    return wanted
