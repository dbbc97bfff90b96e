"""The sign of life: only a worker that makes progress refreshes its key; one that does not ends itself."""

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
from server.queue.errors import RedisUnavailable
from server.queue.messages import WORKER_FORMS, WorkerInfo
from server.queue.worker.worker_queue import WorkerQueue
from server.scheduler.slots import Slots
from server.telemetry import logs
from server.telemetry.metrics import WorkerMetrics
from server.worker.backends.arms import BACKENDS
from server.worker.device_layout import Layout
from server.worker.loaded_bundles import LoadedBundles

log = logs.get(__name__)

EVERY = 1.0
TRIM_EVERY = 60.0
"""Seconds after which what is free goes back to the kernel: scenes that are kept lie between what is freed, so that the heap would grow."""
PATIENCE = 30.0
"""Seconds without progress after which a worker is stuck, unless batches take long: then `SLOWEST` times the slowest one seen."""
SLOWEST = 10


@dataclass
class Heartbeat:
    queue: WorkerQueue
    slots: Slots
    bundles: LoadedBundles
    metrics: WorkerMetrics
    metrics_port: int
    layout: Layout
    keep_seconds: float
    """Time for which what is kept of ended jobs of several steps can be asked again."""
    state: str = "starting"
    _repository_revision: int = 0
    _wake: threading.Event = field(default_factory=threading.Event)
    _ended: bool = False
    _foreign: str = ""
    """Latest warning about a key that the queue cannot use."""

    def beat_now(self) -> None:
        """Announce a change without waiting for the next second."""
        self._wake.set()

    def become(self, state: str) -> None:
        """`ready` or `draining`."""
        self.state = state
        self.beat_now()

    def followed(self, repository_revision: int) -> None:
        """The bundles are in line with this change of the repository."""
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
            if time.monotonic() - trimmed > TRIM_EVERY:
                return_freed_memory()
                trimmed = time.monotonic()
            self._announce()
            self._wake.wait(EVERY)
            self._wake.clear()

    @property
    def silence(self) -> float:
        """Seconds without progress of batches, or of a compilation that one of them may wait for."""
        return min(self.slots.progress_age_s, progress.silence())

    def _announce(self) -> None:
        try:
            self.queue.liveness.announce(self._info())
        except RedisUnavailable as away:  # the key comes back with Redis
            if away.is_about_key and str(away) != self._foreign:  # else the receiver logs it
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
        executors = self.bundles.stepwise()
        # jobs go before what is kept of ended ones
        room = self.layout.state_bytes - sum(executor.nbytes for executor in executors.values())
        for queue, executor in executors.items():
            labels = queue.partition(":")[0].split("@")
            kept = executor.model.evict(max(0, room), self.keep_seconds)
            room -= kept
            self.metrics.resident_jobs.labels(*labels).set(executor.resident_count)
            self.metrics.state_bytes.labels(*labels).set(executor.nbytes + kept)
        serves = self.state == "starting" and any(bundle.state == "ready" for bundle in bundles)  # requests for the others wait
        age = self.silence
        self.metrics.progress_age.set(age)
        return WorkerInfo(
            id=self.queue.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            state="ready" if serves else self.state,  # type: ignore[arg-type]
            device=self.layout.name,
            bundles=bundles,
            progress_age_s=age,
            metrics_port=self.metrics_port,
            repository_revision=self._repository_revision,
            restarts=restarts(),
            folder=str(self.bundles.folder.absolute()),
            forms=WORKER_FORMS,
        )

    def _end_if_stuck(self) -> None:
        limit = max(PATIENCE, SLOWEST * self.slots.slowest_batch_s)
        age = self.silence
        if age > limit:
            log.critical("no progress: ending this worker, others take its jobs over", seconds=round(age, 1), limit=round(limit, 1))
            os._exit(STUCK)
