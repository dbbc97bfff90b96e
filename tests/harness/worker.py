"""Worker processes, and the gateway's end of the queue for tests that speak to them without HTTP."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from server.arrays import Array
from server.queue.dispatch import Dispatcher
from server.queue.errors import RedisAway
from server.queue.messages import Priority, QueuedJob, Reply, WorkerInfo
from server.settings import Settings
from tests.harness.forked import Forked
from tests.harness.waiting import START_S, eventually_async

OPSIN_WORKER = ("opsin", "worker")
"""A module and its arguments."""


@contextmanager
def worker_process(url: str, bundles: Path, *, command: tuple[str, ...] = OPSIN_WORKER, **settings: object) -> Iterator[Forked]:
    """A worker of these settings, of which it may be the first to complain. Its log goes to the test's."""
    usual = Settings(redis_url=url, bundles=bundles, metrics_port=0, dtype="float32").to_environment() | {"OMP_NUM_THREADS": "1"}
    given = {f"OPSIN_{name.upper()}": str(value) for name, value in settings.items()}
    process = Forked(*command, environment=os.environ | usual | given)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class GatewayEnd:
    """The gateway's end of the queue, without HTTP."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self._digests: dict[str, str] = {}

    async def ready(self, workers: int = 1) -> list[WorkerInfo]:
        """Wait until so many workers are ready and have come to an end of loading."""

        infos: list[WorkerInfo] = []

        async def are_ready() -> bool:
            nonlocal infos
            try:
                fleet = await self.dispatcher.fleet(fresh=True)
            except RedisAway:  # while workers start, nobody may answer for a second
                return False
            ready = [info for info in fleet.workers if info.state == "ready"]
            infos = [info for info in ready if all(bundle.state != "loading" for bundle in info.bundles)]
            return len(infos) >= workers

        await eventually_async(are_ready, f"{workers} ready workers", START_S)
        self._digests |= {f"{bundle.name}@{bundle.version}": bundle.digest for info in infos for bundle in info.bundles}
        return infos

    def job(
        self,
        bundle: str,
        pixels: np.ndarray | None = None,
        *,
        digest: str | None = None,
        bucket: str = "off",
        priority: Priority = "normal",
        seconds: float = 60.0,
        **more: Any,
    ) -> QueuedJob:
        """For the content of the bundle that the workers announced when they were ready, unless `digest` says otherwise."""
        pixels = np.zeros((32, 32, 3), np.uint8) if pixels is None else pixels
        return QueuedJob(
            id=uuid.uuid4().hex,
            bundle=bundle,
            digest=digest or self._digests[bundle],
            bucket=bucket,
            arrays={"pixels": Array.of(pixels)},
            priority=priority,
            deadline_ms=int((time.time() + seconds) * 1000),
            gateway=self.dispatcher.id,
            **{"options": {"merge": [0, 0]}, **more},
        )

    async def ask(self, job: QueuedJob) -> Reply:
        [reply] = await self.dispatcher.submit_all([job])
        return reply


@asynccontextmanager
async def gateway(url: str) -> AsyncIterator[GatewayEnd]:
    dispatcher = Dispatcher(url, Settings(redis_url=url))
    await dispatcher.start()
    try:
        yield GatewayEnd(dispatcher)
    finally:
        await dispatcher.close()
