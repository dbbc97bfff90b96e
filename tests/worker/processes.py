"""Real workers and a queue of their own, for tests that speak to them as a gateway does."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from server.arrays import Array
from server.queue.dispatch import Dispatcher
from server.queue.errors import RedisAway
from server.queue.messages import Priority, QueuedJob, Reply, WorkerInfo
from server.settings import Settings
from server.supervisor.private_valkey import PrivateValkey
from tests import forked
from tests.forked import Forked

OPSIN_WORKER = ("opsin", "worker")
"""A module and its arguments."""
WAIT_S = 120.0


@contextmanager
def valkey() -> Iterator[PrivateValkey]:
    forked.prepare()
    server = PrivateValkey()
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def worker(url: str, bundles: Path, *, command: tuple[str, ...] = OPSIN_WORKER, **settings: object) -> Iterator[Forked]:
    """A worker process of its own. Its log goes to the test's; `Gateway.ready` waits until it serves."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPSIN_DTYPE": "float32", "OPSIN_METRICS_PORT": "19201"}
    environment |= {f"OPSIN_{name.upper()}": str(value) for name, value in settings.items()}
    environment |= {"OPSIN_REDIS_URL": url, "OPSIN_BUNDLES": str(bundles)}
    process = Forked(*command, environment=environment)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


class Gateway:
    """The gateway's end of the queue, without HTTP."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self._digests: dict[str, str] = {}

    async def ready(self, workers: int = 1) -> list[WorkerInfo]:
        """Wait until so many workers are ready and have come to an end of loading."""

        async def found() -> list[WorkerInfo]:
            try:
                fleet = await self.dispatcher.fleet(fresh=True)
            except RedisAway:  # while workers start, nobody may answer for a second
                await asyncio.sleep(0.1)
                return []
            ready = [info for info in fleet.workers if info.state == "ready"]
            return [info for info in ready if all(bundle.state != "loading" for bundle in info.bundles)]

        until = time.monotonic() + WAIT_S
        while len(infos := await found()) < workers:
            assert time.monotonic() < until, f"{workers} ready workers never came"
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
async def gateway(url: str) -> AsyncIterator[Gateway]:
    dispatcher = Dispatcher(url, Settings(redis_url=url))
    await dispatcher.start()
    try:
        yield Gateway(dispatcher)
    finally:
        await dispatcher.close()


async def eventually(condition: Callable[[], object], what: str) -> None:
    import asyncio

    until = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < until, f"it never came to this: {what}"
        await asyncio.sleep(0.02)
