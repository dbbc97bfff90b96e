"""A worker's memory is flat: once its caches are full, a thousand requests of one task, or those of a quarter of an hour, add nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import pytest

from opsin import Client
from tests.support.serve_process import serve

HOUSE = Path(__file__).parents[2]
CLIENTS = 3
WARM, REQUESTS = 800, 1000
"""Requests until caches are full, and those of which the first and last tenth are compared.

64 MiB hold the scenes of 160. What malloc has in use stops growing after 700 reconstructions, and stayed level until 2,250.
"""
WARM_SECONDS, SECONDS = 1800.0, 900.0
"""Time limits of both."""
GROWTH = 0.05
"""Variation of a heap that is trimmed once a minute; less than 100 KB per request."""


def classify(client: Client, number: int) -> None:
    client.classify(noise(number, 160), model="photos")


def inpaint(client: Client, number: int) -> None:
    client.inpaint(noise(number, 96), "center", seed=number)


def reconstruct(client: Client, number: int) -> None:
    across, down = np.meshgrid(*[np.linspace(-1.0, 1.0, 112, dtype=np.float32)] * 2)
    client.reconstruct(noise(number, 112), points=np.stack([across, down, 2.0 + 0.3 * across], axis=-1))


def actions(client: Client, number: int) -> None:
    client.actions(HOUSE / "server" / "tasks" / "sample.mp4")


def noise(seed: int, side: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("ask", [classify, inpaint, reconstruct, actions])
def test_a_workers_memory_is_flat_once_its_caches_are_full(ask: Callable[[Client, int], None], tmp_path: Path) -> None:
    with serve(HOUSE / "bundles", cache=tmp_path / "cache") as service:
        url = service.url
        [worker] = service.children("worker")
        process = psutil.Process(worker)
        assert len(_resident_bytes(url, process, ask, range(WARM), WARM_SECONDS)) == WARM, "its caches may not be full"
        read = _resident_bytes(url, process, ask, range(WARM, WARM + REQUESTS), SECONDS)
        assert service.children("worker") == [worker]
    tenth = len(read) // 10
    first, last = median(read[:tenth]), median(read[-tenth:])
    assert last <= (1 + GROWTH) * first, f"{first / 1e6:.0f} → {last / 1e6:.0f} MB in {len(read)} requests"


def _resident_bytes(url: str, worker: psutil.Process, ask: Callable[[Client, int], None], numbers: range, seconds: float) -> list[int]:
    """Send requests with these numbers; return the resident bytes of the worker after each."""
    until, read, lock, left = time.monotonic() + seconds, list[int](), threading.Lock(), iter(numbers)

    def go_on() -> None:
        with Client(url, timeout=120) as client:
            while time.monotonic() < until:
                with lock:
                    number = next(left, None)
                if number is None:
                    return
                ask(client, number)
                read.append(worker.memory_info().rss)

    with ThreadPoolExecutor(CLIENTS) as pool:
        for one in [pool.submit(go_on) for _ in range(CLIENTS)]:
            one.result()
    return read
