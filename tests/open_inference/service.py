"""Real parts for conformance tests: Valkey, gateways and workers as processes, with small bundles."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from server.settings import Settings
from tests.forked import Forked
from tests.gateway import service
from tests.gateway.service import Gateway, eventually, picture

MAX_BODY = 500_000
MAX_IMAGES = 4
MAX_PIXELS = 1_000_000

START_WORKER_S = 120.0
"""A worker imports torch, which takes its time on a busy machine."""

PICTURES = [picture(step, size=(40 + step, 32), kind="JPEG") for step in range(MAX_IMAGES)]


@dataclass(frozen=True)
class Service:
    gateways: list[Gateway]
    bundles: Path
    redis_url: str
    workers: int

    @property
    def gateway(self) -> Gateway:
        return self.gateways[0]

    @property
    def address(self) -> str:
        """`host:port`, as Triton's clients want it."""
        return self.gateway.url.removeprefix("http://")

    def scores(self, image: bytes, **options: str | int) -> np.ndarray:
        """What `/v1/classify` says of a picture, in the order of the classes."""
        (result,) = self.gateway.classify(image, model="tiny", top_k=10, **options).raise_for_status().json()["results"]
        by_class = sorted(result["predictions"], key=lambda prediction: prediction["index"])
        return np.array([prediction["score"] for prediction in by_class], np.float32)

    def best_labels(self, image: bytes) -> list[str]:
        (result,) = self.gateway.classify(image, model="tiny").raise_for_status().json()["results"]
        return [prediction["label"] for prediction in result["predictions"]]

    def wait_for_workers(self, count: int) -> None:
        for gateway in self.gateways:
            eventually(
                lambda gateway=gateway: gateway.metric("opsin_workers", state="ready") == count, f"{count} ready workers", START_WORKER_S
            )

    @contextmanager
    def another_worker(self) -> Iterator[None]:
        """One more, ready, as long as the `with` block runs."""
        with worker_process(self.redis_url, self.bundles):
            self.wait_for_workers(self.workers + 1)
            yield
        self.wait_for_workers(self.workers)


@dataclass(frozen=True)
class Answers:
    """What `/v1/classify` says of PICTURES."""

    scores: np.ndarray
    """(pictures, classes)."""
    labels: list[list[str]]
    """The five best of each."""


@contextmanager
def running(bundles: Path, *, gateways: int, workers: int, **settings: object) -> Iterator[Service]:
    """Gateways of these settings on ports of their own, and workers that have loaded what lies in `bundles`."""
    with ExitStack() as stack:
        url = stack.enter_context(service.valkey()).url
        for _ in range(workers):
            stack.enter_context(worker_process(url, bundles))
        limits = {"max_body_bytes": MAX_BODY, "max_images": MAX_IMAGES, "max_pixels": MAX_PIXELS}
        started = [stack.enter_context(service.gateway(url, **limits, **settings)) for _ in range(gateways)]
        together = Service(started, bundles, url, workers)
        together.wait_for_workers(workers)
        yield together


@contextmanager
def worker_process(url: str, bundles: Path) -> Iterator[Forked]:
    settings = Settings(redis_url=url, bundles=bundles, metrics_port=0, threads=1, dtype="float32")
    process = Forked("opsin", "worker", environment=os.environ | settings.to_environment() | {"OMP_NUM_THREADS": "1"})
    try:
        yield process
    finally:
        process.kill()
        process.wait()
