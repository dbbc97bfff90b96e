"""The loops of a worker's threads that move jobs: from the queue to the slots, and through them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import SimpleQueue

import torch

from kernels.device_errors import is_out_of_memory
from models.bundle import BundleError
from server.processes import os_process
from server.queue.errors import RedisUnavailable
from server.queue.worker.delivery import Delivery, QueueEntry
from server.queue.worker.worker_queue import WorkerQueue
from server.scheduler.scheduler import PullOrder, RunningBatch
from server.scheduler.slots import Slots, SlotWork
from server.telemetry import logs
from server.telemetry.metrics import WorkerMetrics
from server.worker.device_layout import Layout
from server.worker.executors import Computed, Executor, FailedJob, Left, Report, Reports, Result, TooLarge, Unserved
from server.worker.loaded_bundles import LoadedBundles
from server.worker.reply_writer import Answers

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
    """Looks at the queue, for one thread at a time. Large messages are read one after the other in a thread of their own, while jobs whose
    message came with them go on; until then `Slots` counts them as here, so there is never more than one batch of them ahead."""

    def __init__(self, queue: WorkerQueue, slots: Slots, bundles: LoadedBundles, metrics: WorkerMetrics) -> None:
        self._queue = queue
        self._slots = slots
        self._bundles = bundles
        self._metrics = metrics
        self._next_reclaim = 0.0
        self._away = False
        self._line: SimpleQueue[QueueEntry | None] = SimpleQueue()
        self._unread: dict[tuple[str, str], QueueEntry] = {}
        """Large messages that have not been read, by stream and entry id."""

    def look(self, pull: PullOrder) -> None:
        """Pull jobs as the slots want them."""
        found: list[Delivery] = []
        try:
            found = self._look(pull)
        except RedisUnavailable as error:
            if not self._away:
                log.warning("queue unavailable", reason=str(error))
            self._away = True
            time.sleep(AWAY_PAUSE)
        finally:
            self._slots.finish_pull(found)

    def fetch_forever(self) -> None:
        """Read large messages until `close`, and those that came before it."""
        while (beside := self._line.get()) is not None:
            try:
                delivery = self._queue.leases.fetch(beside)
            except RedisUnavailable as away:
                log.error("payload not read: its job runs elsewhere", job=beside.job_id, reason=str(away))
                delivery = None
            if delivery is not None:
                self._slots.add([delivery])
            del self._unread[beside.stream, beside.entry_id]
            self._slots.count_pending_payloads(beside.queue, -1)
        self._slots.end_intake()

    def close(self) -> None:
        """Nothing more comes. It may be said again."""
        self._line.put(None)

    def unread(self) -> list[QueueEntry]:
        """Jobs whose message has not been read."""
        return list(self._unread.values())

    def _look(self, pull: PullOrder) -> list[Delivery]:
        served = self._bundles.served()
        if not served:
            time.sleep(LOADING_PAUSE)
            return []
        if time.monotonic() >= self._next_reclaim:
            orphan = self._queue.leases.reclaim(served) if self._slots.may_reclaim else None
            if orphan is not None:  # a worker may have died of it: it runs alone
                self._slots.add([orphan])
                self._metrics.redeliveries.inc()
                return []
            self._next_reclaim = time.monotonic() + RECLAIM_EVERY
        jobs = self._queue.leases.take(served, pull.items, int(pull.block_s * 1000), pull.long)
        if self._away:
            log.info("queue back")
        self._away = False
        for job in jobs:
            if not isinstance(job, Delivery):
                self._unread[job.stream, job.entry_id] = job
                self._slots.count_pending_payloads(job.queue, 1)
                self._line.put(job)
        return [job for job in jobs if isinstance(job, Delivery)]


@dataclass(frozen=True)
class BatchRunner:
    """Runs batches and steps. A *hand* is a thread that does so; its number says to the queue whose record of what runs it is."""

    queue: WorkerQueue
    slots: Slots
    bundles: LoadedBundles
    answers: Answers
    layout: Layout

    def work(self, receiver: Receiver, hand: int) -> None:
        """Look or, with what was found, schedule → run → answer, until the worker is drained. There is one hand more than slots."""
        torch.set_num_threads(self.layout.threads)
        while (task := self.slots.next()) is not None:
            if isinstance(task, SlotWork):
                task.run()
            elif isinstance(task, RunningBatch):
                self._compute(task, hand)
            else:
                receiver.look(task)

    def take_steps(self, hand: int) -> None:
        """The steps of long jobs, until the worker is drained. There are as many such hands as slots."""
        if self.layout.device.type == "cpu":
            os_process.lower_own_priority()
        torch.set_num_threads(self.layout.threads)
        running = self.slots.next_step()
        while running is not None:
            self._compute(running, hand)
            running = self.slots.next_step(wait=False)
            if running is None:
                with suppress(RedisUnavailable):
                    self.queue.leases.end(hand)  # so that nothing that it ran is suspected of what others run while it waits
                running = self.slots.next_step()

    def leave(self, jobs: list[Delivery]) -> None:
        """Hand jobs back between two of their steps."""
        for job in jobs:
            if (executor := self.bundles.executor(job.queue)) is not None:
                executor.drop([job])
        self.answers.put(Left(jobs, "handed_back"))
        self._hand_back(jobs)

    def _compute(self, running: RunningBatch, hand: int) -> None:
        latest: Result | None = None
        unfinished: list[Delivery] = []
        unloadable: list[Delivery] = []
        lone: list[Delivery] = []
        for result in self._run(running, hand):
            if isinstance(result, FailedJob) and isinstance(result.error, BundleError):
                self.bundles.lost(running.bucket.queue, str(result.error))
                unloadable.append(result.job)
                continue
            if isinstance(result, FailedJob) and is_out_of_memory(result.error) and not running.bucket.alone:
                lone.append(replace(result.job, alone=True))  # another batch may have held the memory
                continue
            if latest is not None:
                self.answers.put(latest)
            latest = result
            if isinstance(result, Reports):
                self.answers.put(result)  # the next result may be long in coming
                latest = None
            if isinstance(result, Computed):
                unfinished += result.unfinished
            if isinstance(result, Left):
                unfinished = [job for job in unfinished if job not in result.jobs]
        finish = self.slots.finish(running, unfinished)
        if lone:
            self.slots.add(lone)
        if latest is not None:
            # while another batch could run, answering must not keep this slot from it; what is reported of steps stays in order
            (self.answers.write_in_turn if finish.is_idle and not running.long else self.answers.put)(latest)
        if finish.unfinishable:
            self.leave(finish.unfinishable)
        if unloadable:
            self._hand_back(unloadable)

    def _hand_back(self, jobs: list[Delivery]) -> None:
        try:
            self.queue.leases.return_to_queue(jobs)
        except RedisUnavailable as away:
            log.error("jobs not handed back: other workers will find them by themselves", jobs=len(jobs), reason=str(away))

    def _run(self, running: RunningBatch, hand: int) -> Iterator[Result]:
        executor = self.bundles.executor(running.bucket.queue)
        fresh = not running.bucket.alone and all(running.started - job.checked_at < FRESH for job in running.jobs)
        wanted = self._ask_for_wanted(running, hand, checked=fresh)
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
            running.last_progress_at = time.monotonic()
            if isinstance(result, TooLarge):
                log.warning("out of memory", bundle=running.bucket.bundle, size=len(result.jobs))
                self.answers.put(result)
                if len(result.jobs) > 1:  # a single job may have met the peak of another batch
                    self.slots.record_out_of_memory(running, round(sum(map(executor.weight, result.jobs))))
                continue
            if isinstance(result, Computed) and len(result.jobs) == len(jobs) and not (result.cold or result.waited):
                self.slots.record_batch(running, result.size, result.seconds)
            if isinstance(result, Computed) and result.has_new_backend:
                self.slots.forget_times(running)
            yield result
        if later:
            yield from _dropped(executor, running, wanted())

    def _ask_for_wanted(self, running: RunningBatch, hand: int, *, checked: bool) -> Callable[[], list[Delivery]]:
        """A function that tells which jobs of a batch are still wanted. The record of what runs is on its way when this returns."""
        try:
            answer = self.queue.leases.send_step(running.jobs, hand, checked=checked)
        except RedisUnavailable:
            return lambda: running.jobs

        def wanted() -> list[Delivery]:
            try:
                return answer()
            except RedisUnavailable:
                return running.jobs

        return wanted


def _dropped(executor: Executor, running: RunningBatch, wanted: list[Delivery]) -> Iterator[Result]:
    """Jobs of a batch that are not wanted any more leave."""
    if len(wanted) == len(running.jobs):
        return
    kept = {job.entry_id for job in wanted}
    gone = [job for job in running.jobs if job.entry_id not in kept]
    executor.drop(gone)
    if running.long:
        yield Left(gone, "unwanted")
