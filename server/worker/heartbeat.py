"""Heartbeat of a worker: it refreshes its key while it makes progress, and exits if it makes none."""

from __future__ import annotations

import os
import socket
import threading
import time
from dataclasses import dataclass, field

from kernels import progress
from kernels.devices import device_memory
from kernels.malloc import return_freed_memory
from server.processes.supervisor_protocol import STUCK, restarts
from server.queue.connect import RedisUnavailable
from server.queue.messages import WORKER_FORMS, WorkerInfo
from server.queue.worker.worker_queue import WorkerQueue
from server.scheduler.slots import Slots
from server.telemetry import logs
from server.telemetry.metrics import WorkerMetrics
from server.worker.backends.learner import BACKENDS
from server.worker.device_layout import Layout
from server.worker.loaded_bundles import LoadedBundles

log = logs.get(__name__)

INTERVAL_S = 1.0
TRIM_INTERVAL_S = 60.0
"""Time after which free memory is returned to the kernel: cached scenes fragment the heap, which would grow otherwise."""
STUCK_AFTER_S = 30.0
"""Time without progress after which a worker is stuck, or `STUCK_BATCH_FACTOR` times its slowest batch if that is longer."""
STUCK_BATCH_FACTOR = 10


@dataclass
class Heartbeat:
    queue: WorkerQueue
    slots: Slots
    bundles: LoadedBundles
    metrics: WorkerMetrics
    metrics_port: int
    layout: Layout
    keep_seconds: float
    """Time for which results of ended jobs of several steps, such as scenes, are kept for further queries."""
    state: str = "starting"
    _repository_revision: int = 0
    _wake: threading.Event = field(default_factory=threading.Event)
    _ended: bool = False
    _foreign: str = ""
    """Latest warning about a key that the queue cannot use."""

    def beat_now(self) -> None:
        """Announce a change without waiting for the next second."""
        self._wake.set()

    def set_state(self, state: str) -> None:
        """Announce a state: `ready` or `draining`."""
        self.state = state
        self.beat_now()

    def set_revision(self, repository_revision: int) -> None:
        """Announce that the bundles follow this revision of the repository."""
        if repository_revision != self._repository_revision:
            self._repository_revision = repository_revision
            self.beat_now()

    def end(self) -> None:
        self._ended = True
        self._wake.set()

    def run(self) -> None:
        trimmed = time.monotonic()
        while not self._ended:
            self._end_if_stuck()
            if time.monotonic() - trimmed > TRIM_INTERVAL_S:
                return_freed_memory()
                trimmed = time.monotonic()
            self._announce()
            self._wake.wait(INTERVAL_S)
            self._wake.clear()

    @property
    def progress_age_s(self) -> float:
        """Time in seconds without progress of batches, or of a compilation that a batch may wait for."""
        return min(self.slots.progress_age_s, progress.silence())

    def _announce(self) -> None:
        try:
            self.queue.announce(self._info())
        except RedisUnavailable as away:  # the next heartbeat sets the key again
            if away.is_about_key and str(away) != self._foreign:  # otherwise the receiver logs it
                log.warning("queue key unusable", reason=str(away))
            self._foreign = str(away)
        else:
            self._foreign = ""

    def _info(self) -> WorkerInfo:
        bundles = self.bundles.announcements(self.slots.count)
        for bundle in bundles:
            self.metrics.batch_budget.labels(bundle.name, bundle.version).set(bundle.batch_budget)
        for label, chosen in self.bundles.backends().items():
            for backend in BACKENDS:
                self.metrics.backend.labels(*label, backend).set(backend == chosen)
        for kind, nbytes in device_memory(self.layout.device).items():
            self.metrics.device_memory.labels(self.layout.name, kind).set(nbytes)
        executors = self.bundles.stepwise_by_queue()
        # running jobs take precedence over results of ended ones
        available = self.layout.state_bytes - sum(executor.nbytes for executor in executors.values())
        for queue, executor in executors.items():
            labels = queue.partition(":")[0].split("@")
            cached_bytes = executor.model.evict(max(0, available), self.keep_seconds)
            available -= cached_bytes
            self.metrics.resident_jobs.labels(*labels).set(len(executor.residents))
            self.metrics.state_bytes.labels(*labels).set(executor.nbytes + cached_bytes)
        serves = self.state == "starting" and any(bundle.state == "ready" for bundle in bundles)  # requests for the others wait
        age = self.progress_age_s
        self.metrics.progress_age.set(age)
        return WorkerInfo(
            id=self.queue.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            state="ready" if serves else self.state,  # type: ignore[arg-type]
            device=self.layout.name,
            bundles=bundles,
            slots=self.slots.count,
            progress_age_s=age,
            metrics_port=self.metrics_port,
            repository_revision=self._repository_revision,
            restarts=restarts(),
            folder=str(self.bundles.folder.absolute()),
            forms=WORKER_FORMS,
        )

    def _end_if_stuck(self) -> None:
        limit = max(STUCK_AFTER_S, STUCK_BATCH_FACTOR * self.slots.slowest_batch_s)
        age = self.progress_age_s
        if age > limit:
            log.critical("no progress: exiting, other workers take over the jobs", seconds=round(age, 1), limit=round(limit, 1))
            os._exit(STUCK)
