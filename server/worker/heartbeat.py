"""The sign of life: only a worker that makes progress refreshes its key; one that does not ends itself."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress

from kernels.memory import return_freed_memory
from server.process.exits import STUCK
from server.process.restarts import restarts
from server.queue.errors import RedisAway
from server.queue.job import WORKER_FORMS, WorkerInfo
from server.queue.worker_side import WorkerQueue
from server.scheduler.slots import Slots
from server.telemetry import logs
from server.telemetry.metrics import WorkerMetrics
from server.worker.backend_times import BACKENDS
from server.worker.loaded_bundles import LoadedBundles

log = logs.get(__name__)

EVERY = 1.0
TRIM_EVERY = 60.0
"""Seconds after which what is free goes back to the kernel: scenes that are kept lie between what is freed, so that the heap would grow."""
PATIENCE = 30.0
"""Seconds without progress after which a worker is stuck, unless batches take long: then `SLOWEST` times the slowest one seen."""
SLOWEST = 10


class Heartbeat:
    def __init__(
        self,
        queue: WorkerQueue,
        slots: Slots,
        bundles: LoadedBundles,
        metrics: WorkerMetrics,
        device: str,
        metrics_port: int,
        state_bytes: int,
        keep_seconds: float,
    ) -> None:
        """state_bytes: for jobs of several steps and what is kept of ended ones; keep_seconds: how long the latter can be asked again."""
        self._queue = queue
        self._slots = slots
        self._bundles = bundles
        self._metrics = metrics
        self._device = device
        self._metrics_port = metrics_port
        self._state_bytes = state_bytes
        self._keep_seconds = keep_seconds
        self._wake = threading.Event()
        self._ended = threading.Event()
        self.state: str = "starting"
        self._repository_revision = 0

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
        self._ended.set()
        self._wake.set()

    def run(self) -> None:
        trimmed = time.monotonic()
        while not self._ended.is_set():
            self._end_if_stuck()
            if time.monotonic() - trimmed > TRIM_EVERY:
                return_freed_memory()
                trimmed = time.monotonic()
            with suppress(RedisAway):  # the receiver tells; the key comes back with Redis
                self._queue.announce(self._info())
            self._wake.wait(EVERY)
            self._wake.clear()

    def _info(self) -> WorkerInfo:
        bundles = self._bundles.announcements(self._slots.count)
        for bundle in bundles:
            self._metrics.batch_budget.labels(bundle.name, bundle.version).set(bundle.batch_budget)
        for label, chosen in self._bundles.backends().items():
            for backend in BACKENDS:
                self._metrics.backend.labels(*label, backend).set(backend == chosen)
        executors = self._bundles.stepwise_by_name()
        room = self._state_bytes - sum(executor.nbytes for executor in executors.values())  # jobs go before what is kept of ended ones
        for name, executor in executors.items():
            kept = executor.trim(max(0, room), self._keep_seconds)
            room -= kept
            self._metrics.resident_jobs.labels(*name).set(executor.residents)
            self._metrics.state_bytes.labels(*name).set(executor.nbytes + kept)
        serves = self.state == "starting" and any(bundle.state == "ready" for bundle in bundles)  # requests for the others wait
        age = self._slots.silence
        self._metrics.progress_age.set(age)
        return WorkerInfo(
            id=self._queue.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            state="ready" if serves else self.state,  # type: ignore[arg-type]
            device=self._device,
            bundles=bundles,
            progress_age_s=age,
            metrics_port=self._metrics_port,
            repository_revision=self._repository_revision,
            restarts=restarts(),
            folder=str(self._bundles.folder.absolute()),
            forms=WORKER_FORMS,
        )

    def _end_if_stuck(self) -> None:
        limit = max(PATIENCE, SLOWEST * self._slots.slowest)
        age = self._slots.silence
        if age > limit:
            log.critical("no progress: ending this worker, others take its jobs over", seconds=round(age, 1), limit=round(limit, 1))
            os._exit(STUCK)
