"""Real parts as processes: Valkey, gateways and workers with small bundles, and the gateway's end of the queue without HTTP."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil

from server.processes.supervisor_protocol import process_prefix
from server.queue import keys
from server.queue.connect import RedisUnavailable
from server.queue.gateway.dispatcher import Dispatcher
from server.queue.keys import Keyspace
from server.queue.messages import Array, Priority, QueuedJob, Reply, WorkerInfo
from server.settings import Settings
from server.supervisor.child_processes import ProcessExit
from server.supervisor.liveness import LivenessMonitor
from tests.support.forked_program import ForkedProcess
from tests.support.gateway_process import Gateway, gateway_process, sum_up
from tests.support.redis import CellRedis, private_valkey
from tests.support.waiting import START_S, eventually, eventually_async

OPSIN_WORKER = ("opsin", "worker")
"""A module and its arguments."""


@contextmanager
def worker_process(url: str, bundles: Path, *, command: tuple[str, ...] = OPSIN_WORKER, **settings: object) -> Iterator[ForkedProcess]:
    """Run a worker with these settings. Its log goes to the test's."""
    usual = Settings(redis_url=url, bundles=bundles, metrics_port=0, dtype="float32").to_environment() | {"OMP_NUM_THREADS": "1"}
    inputs = {f"OPSIN_{name.upper()}": str(value) for name, value in settings.items()}
    process = ForkedProcess(*command, environment=os.environ | usual | inputs)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def forget_worker(url: str, worker: ForkedProcess) -> None:
    """Kill a worker, and let others take its jobs at once, as the supervisor does, instead of when its key expires."""
    worker.kill()
    sightings = LivenessMonitor(url, Keyspace())
    sightings.withdraw_worker(ProcessExit(worker.pid, "crashed", worker.wait()))
    sightings.start()
    try:
        with CellRedis.from_url(url) as client:
            ours = keys.worker(process_prefix(worker.pid))
            eventually(lambda: not list(client.scan_iter(f"{ours}*")), "its key is gone")
    finally:
        sightings.end()


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
                fleet = await self.dispatcher.fleet.read(fresh=True)
            except RedisUnavailable:  # while workers start, no one may answer for a second
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
        **extra: Any,
    ) -> QueuedJob:
        """Queue a job for the content of the bundle that the workers announced when they were ready, unless `digest` says otherwise."""
        pixels = np.zeros((32, 32, 3), np.uint8) if pixels is None else pixels
        return QueuedJob(
            id=uuid.uuid4().hex,
            bundle=bundle,
            digest=digest or self._digests[bundle],
            bucket=bucket,
            arrays={"pixels": Array.from_numpy(pixels)},
            priority=priority,
            deadline_ms=int((time.time() + seconds) * 1000),
            gateway=self.dispatcher.id,
            **{"options": {"merge": [0, 0]}, **extra},
        )

    async def ask(self, job: QueuedJob) -> Reply:
        [reply] = await self.dispatcher.submitter.submit([job])
        return reply


@asynccontextmanager
async def gateway(url: str) -> AsyncIterator[GatewayEnd]:
    dispatcher = Dispatcher(url, Settings(redis_url=url))
    await dispatcher.start()
    try:
        yield GatewayEnd(dispatcher)
    finally:
        await dispatcher.close()


MAX_BODY = 500_000
MAX_IMAGES = 4
SMALL_LIMITS = {"max_body_bytes": MAX_BODY, "max_images": MAX_IMAGES, "max_pixels": 1_000_000}
"""Settings of gateways whose limits are tested."""


@dataclass(frozen=True)
class Service:
    gateways: list[Gateway]
    workers: list[ForkedProcess]
    bundles: Path
    redis_url: str

    @property
    def gateway(self) -> Gateway:
        return self.gateways[0]

    @property
    def url(self) -> str:
        """Address of the first gateway."""
        return self.gateway.url

    @property
    def worker(self) -> int:
        """The pid of the first one."""
        return self.workers[0].pid

    @property
    def address(self) -> str:
        """`host:port`, as Triton's clients want it."""
        return self.gateway.url.removeprefix("http://")

    def get_from_worker(self, path: str) -> httpx2.Response:
        """Read a path of the first worker's metrics port."""
        [address] = [one.laddr for one in psutil.net_connections("inet") if (one.pid, one.status) == (self.worker, "LISTEN")]
        return httpx2.get(f"http://127.0.0.1:{address.port}{path}", timeout=60)

    def sum_metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of the first worker's metric with these labels."""
        return sum_up(self.get_from_worker("/metrics").text, name, **labels)

    def scores(self, image: bytes, **options: str | int) -> np.ndarray:
        """Return the answer of `/v1/classify` to an image, in the order of the classes."""
        (result,) = self.gateway.classify(image, model="tiny", top_k=10, **options).raise_for_status().json()["results"]
        by_class = sorted(result["predictions"], key=lambda prediction: prediction["index"])
        return np.array([prediction["score"] for prediction in by_class], np.float32)

    def best_labels(self, image: bytes) -> list[str]:
        (result,) = self.gateway.classify(image, model="tiny").raise_for_status().json()["results"]
        return [prediction["label"] for prediction in result["predictions"]]

    @contextmanager
    def another_worker(self) -> Iterator[None]:
        """Run another worker, ready, for the duration of the `with` block."""
        with worker_process(self.redis_url, self.bundles) as process:
            self.wait_for_workers(len(self.workers) + 1)
            yield
            process.terminate()  # it says goodbye: a killed one would be counted until its key expires
            process.wait(START_S)
        self.wait_for_workers(len(self.workers))

    def wait_for_workers(self, count: int) -> None:
        """Wait until so many workers are ready and have loaded all that they can."""
        for gateway in self.gateways:
            gateway.wait_for_workers(count)
            eventually(lambda gateway=gateway: "loading" not in gateway.states(), "all bundles are loaded", START_S)


@contextmanager
def running(
    bundles: Path, *, gateways: int = 1, workers: int = 1, of_workers: Mapping[str, object] | None = None, **settings: Any
) -> Iterator[Service]:
    """Gateways of these settings on ports of their own, and workers that have loaded what lies in `bundles`.

    of_workers: their settings; without, they compute in float32."""
    with ExitStack() as stack:
        url = stack.enter_context(private_valkey()).url
        started = [stack.enter_context(worker_process(url, bundles, **(of_workers or {}))) for _ in range(workers)]
        requested = [stack.enter_context(gateway_process(url, **settings)) for _ in range(gateways)]
        joint = Service(requested, started, bundles, url)
        joint.wait_for_workers(workers)
        yield joint
