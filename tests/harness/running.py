"""Real parts: Valkey, gateways and workers as processes, with small bundles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil

from tests.harness.forked import Forked
from tests.harness.gateway import Gateway, gateway_process, summed
from tests.harness.valkey import private_valkey
from tests.harness.waiting import START_S, eventually
from tests.harness.worker import worker_process

MAX_BODY = 500_000
MAX_IMAGES = 4
SMALL_LIMITS = {"max_body_bytes": MAX_BODY, "max_images": MAX_IMAGES, "max_pixels": 1_000_000}
"""Settings of gateways whose limits are tested."""


@dataclass(frozen=True)
class Service:
    gateways: list[Gateway]
    workers: list[Forked]
    bundles: Path
    redis_url: str

    @property
    def gateway(self) -> Gateway:
        return self.gateways[0]

    @property
    def url(self) -> str:
        """Of the first gateway."""
        return self.gateway.url

    @property
    def worker(self) -> int:
        """The pid of the first one."""
        return self.workers[0].pid

    @property
    def address(self) -> str:
        """`host:port`, as Triton's clients want it."""
        return self.gateway.url.removeprefix("http://")

    def counted(self, name: str, **labels: str) -> float:
        """The first worker's metric: the sum of the samples with these labels."""
        [address] = [one.laddr for one in psutil.net_connections("inet") if (one.pid, one.status) == (self.worker, "LISTEN")]
        return summed(httpx2.get(f"http://127.0.0.1:{address.port}/metrics", timeout=60).text, name, **labels)

    def scores(self, image: bytes, **options: str | int) -> np.ndarray:
        """The answer of `/v1/classify` to an image, in the order of the classes."""
        (result,) = self.gateway.classify(image, model="tiny", top_k=10, **options).raise_for_status().json()["results"]
        by_class = sorted(result["predictions"], key=lambda prediction: prediction["index"])
        return np.array([prediction["score"] for prediction in by_class], np.float32)

    def best_labels(self, image: bytes) -> list[str]:
        (result,) = self.gateway.classify(image, model="tiny").raise_for_status().json()["results"]
        return [prediction["label"] for prediction in result["predictions"]]

    @contextmanager
    def another_worker(self) -> Iterator[None]:
        """One more, ready, as long as the `with` block runs."""
        with worker_process(self.redis_url, self.bundles):
            self.wait_for_workers(len(self.workers) + 1)
            yield
        self.wait_for_workers(len(self.workers))

    def wait_for_workers(self, count: int) -> None:
        """Until so many are ready, and have loaded all that they can."""
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
        asked = [stack.enter_context(gateway_process(url, **settings)) for _ in range(gateways)]
        together = Service(asked, started, bundles, url)
        together.wait_for_workers(workers)
        yield together
