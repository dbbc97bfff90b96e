"""Loops of the threads that pull jobs from the queue and run them in slots."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import SimpleQueue

import torch

from kernels.devices import is_out_of_memory
from models.bundle import BundleError
from server.processes import os_process
from server.queue.connect import RedisUnavailable
from server.queue.worker.delivery import Delivery, QueueEntry
from server.queue.worker.worker_queue import WorkerQueue
from server.scheduler.scheduler import PullOrder, RunningBatch
from server.scheduler.slots import Slots, SlotWork
from server.telemetry import logs
from server.telemetry.metrics import WorkerMetrics
from server.worker.device_layout import Layout
from server.worker.executors import ComputedBatch, DepartedJobs, Executor, FailedJob, JobReport, Reports, Result, TooLarge, UnservedJobs
from server.worker.loaded_bundles import LoadedBundles
from server.worker.reply_writer import ReplyWriter

log = logs.get(__name__)

RECLAIM_INTERVAL_S = 1.0
REDIS_RETRY_PAUSE_S = 0.25
LOADING_PAUSE_S = 0.02
"""Pause while no bundle is loaded. It is short because clients wait while a worker restarts."""
BRIEF_STEP_S = 0.2
"""Duration below which steps start before it is known which jobs are cancelled: a cancelled job may take one more step."""
MAX_CHECK_AGE_S = 0.05
"""Age up to which a check of deadline, cancellation and gateway is still valid when the batch of a job starts."""


class JobReceiver:
    """A receiver that pulls jobs from the queue. Only one thread may use it at a time.

    Another thread reads large payloads one by one, while other jobs run. `Slots` counts their jobs, so that at most one batch is ahead."""

    def __init__(self, queue: WorkerQueue, slots: Slots, bundles: LoadedBundles, metrics: WorkerMetrics) -> None:
        self._queue = queue
        self._slots = slots
        self._bundles = bundles
        self._metrics = metrics
        self._next_reclaim = 0.0
        self._away = False
        self._line: SimpleQueue[QueueEntry | None] = SimpleQueue()
        self._unread: dict[tuple[str, str], QueueEntry] = {}
        """Jobs whose large payload has not been read, by stream and entry id."""

    def pull(self, order: PullOrder) -> None:
        """Pull jobs and add them to the slots."""
        found: list[Delivery] = []
        try:
            found = self._pull(order)
        except RedisUnavailable as error:
            if not self._away:
                log.warning("queue unavailable", reason=str(error))
            self._away = True
            time.sleep(REDIS_RETRY_PAUSE_S)
        finally:
            self._slots.finish_pull(found)

    def fetch_forever(self) -> None:
        """Read large payloads until `close`, including those that came before it."""
        while (entry := self._line.get()) is not None:
            try:
                delivery = self._queue.intake.fetch(entry)
            except RedisUnavailable as away:
                log.error("payload not read: another worker will reclaim the job", job=entry.job_id, reason=str(away))
                delivery = None
            if delivery is not None:
                self._slots.add([delivery])
            del self._unread[entry.stream, entry.entry_id]
            self._slots.count_pending_payloads(entry.queue, -1)
        self._slots.end_intake()

    def close(self) -> None:
        """End `fetch_forever`. May be called repeatedly."""
        self._line.put(None)

    def unread(self) -> list[QueueEntry]:
        """Return the jobs whose payload has not been read."""
        return list(self._unread.values())

    def _pull(self, order: PullOrder) -> list[Delivery]:
        queues = self._bundles.list_queues()
        if not queues:
            time.sleep(LOADING_PAUSE_S)
            return []
        if time.monotonic() >= self._next_reclaim:
            orphan = self._queue.intake.reclaim(queues) if self._slots.may_reclaim else None
            if orphan is not None:  # it may have crashed its worker, so it runs alone
                self._slots.add([orphan])
                self._metrics.redeliveries.inc()
                return []
            self._next_reclaim = time.monotonic() + RECLAIM_INTERVAL_S
        jobs = self._queue.intake.take(queues, order.items, int(order.block_s * 1000), order.long)
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
    """A runner of batches and steps for several threads, whose indices identify their records of running jobs in the queue."""

    queue: WorkerQueue
    slots: Slots
    bundles: LoadedBundles
    answers: ReplyWriter
    layout: Layout

    def run_batches(self, receiver: JobReceiver, runner_index: int) -> None:
        """Pull jobs, run batches and reply until the worker is drained, in one thread more than there are slots."""
        torch.set_num_threads(self.layout.threads)
        while (task := self.slots.next()) is not None:
            if isinstance(task, SlotWork):
                task.run()
            elif isinstance(task, RunningBatch):
                self._compute(task, runner_index)
            else:
                receiver.pull(task)

    def run_steps(self, runner_index: int) -> None:
        """Run steps of long jobs until the worker is drained, in a thread for each slot."""
        if self.layout.device.type == "cpu":
            os_process.lower_own_priority()
        torch.set_num_threads(self.layout.threads)
        running = self.slots.next_step()
        while running is not None:
            self._compute(running, runner_index)
            running = self.slots.next_step(wait=False)
            if running is None:
                with suppress(RedisUnavailable):
                    self.queue.intake.end(runner_index)  # so that its last jobs are not suspected if others crash the worker while it waits
                running = self.slots.next_step()

    def leave(self, jobs: list[Delivery]) -> None:
        """Return long jobs to the queue between two of their steps."""
        for job in jobs:
            if (executor := self.bundles.executor(job.queue)) is not None:
                executor.drop([job])
        self.answers.put(DepartedJobs(jobs, "handed_back"))
        self._return_to_queue(jobs)

    def _compute(self, running: RunningBatch, runner_index: int) -> None:
        latest: Result | None = None
        unfinished: list[Delivery] = []
        unloadable: list[Delivery] = []
        exclusive: list[Delivery] = []
        for result in self._run(running, runner_index):
            if isinstance(result, FailedJob) and isinstance(result.error, BundleError):
                self.bundles.mark_lost(running.bucket.queue, str(result.error))
                unloadable.append(result.job)
                continue
            if isinstance(result, FailedJob) and is_out_of_memory(result.error) and not running.bucket.alone:
                exclusive.append(replace(result.job, alone=True))  # another batch may have held the memory
                continue
            if latest is not None:
                self.answers.put(latest)
            latest = result
            if isinstance(result, Reports):
                self.answers.put(result)  # the next result may take long
                latest = None
            if isinstance(result, ComputedBatch):
                unfinished += result.unfinished
            if isinstance(result, DepartedJobs):
                unfinished = [job for job in unfinished if job not in result.jobs]
        finish = self.slots.finish(running, unfinished)
        if exclusive:
            self.slots.add(exclusive)
        if latest is not None:
            # if another batch waits, replying must not delay it; reports of steps stay in order
            (self.answers.write_now_or_queue if finish.is_idle and not running.long else self.answers.put)(latest)
        if finish.unfinishable:
            self.leave(finish.unfinishable)
        if unloadable:
            self._return_to_queue(unloadable)

    def _return_to_queue(self, jobs: list[Delivery]) -> None:
        try:
            self.queue.intake.return_to_queue(jobs)
        except RedisUnavailable as away:
            log.error("could not return jobs to the queue: other workers will reclaim them", jobs=len(jobs), reason=str(away))

    def _run(self, running: RunningBatch, runner_index: int) -> Iterator[Result]:
        executor = self.bundles.executor(running.bucket.queue)
        is_fresh = not running.bucket.alone and all(running.started - job.checked_at < MAX_CHECK_AGE_S for job in running.jobs)
        read_wanted = self._filter_wanted(running, runner_index, checked=is_fresh)
        if executor is None:
            yield UnservedJobs(read_wanted())
            return
        # jobs that have just been checked, or have started and take a brief step, run before the answer is read
        later = is_fresh or (running.expected_end - running.started < BRIEF_STEP_S and executor.all_started(running.jobs))
        jobs = running.jobs if later else read_wanted()
        yield from _drop_unwanted(executor, running, jobs)
        if starting := [JobReport(job, 0, 0, "") for job in jobs if job.job.progress and not executor.all_started([job])]:
            yield Reports(starting)
        for result in executor.run(jobs) if jobs else ():
            running.last_progress_at = time.monotonic()
            if isinstance(result, TooLarge):
                log.warning("out of memory", bundle=running.bucket.bundle, size=len(result.jobs))
                self.answers.put(result)
                if len(result.jobs) > 1:  # a single job may have met the peak of another batch
                    self.slots.record_out_of_memory(running, round(sum(map(executor.weight, result.jobs))))
                continue
            if isinstance(result, ComputedBatch) and len(result.jobs) == len(jobs) and not (result.is_new_shape or result.made_no_progress):
                self.slots.record_batch(running, result.size, result.seconds)
            if isinstance(result, ComputedBatch) and result.has_new_backend:
                self.slots.forget_times(running)
            yield result
        if later:
            yield from _drop_unwanted(executor, running, read_wanted())

    def _filter_wanted(self, running: RunningBatch, runner_index: int, *, checked: bool) -> Callable[[], list[Delivery]]:
        """Send the record of running jobs, and return a function that reads which of them are still wanted."""
        try:
            answer = self.queue.intake.send_step(running.jobs, runner_index, checked=checked)
        except RedisUnavailable:
            return lambda: running.jobs

        def read_wanted() -> list[Delivery]:
            try:
                return answer()
            except RedisUnavailable:
                return running.jobs

        return read_wanted


def _drop_unwanted(executor: Executor, running: RunningBatch, remaining: list[Delivery]) -> Iterator[Result]:
    """Drop the jobs of a batch that are no longer wanted."""
    if len(remaining) == len(running.jobs):
        return
    entry_ids = {job.entry_id for job in remaining}
    unwanted = [job for job in running.jobs if job.entry_id not in entry_ids]
    executor.drop(unwanted)
    if running.long:
        yield DepartedJobs(unwanted, "unwanted")
