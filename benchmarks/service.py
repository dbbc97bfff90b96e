"""`opsin serve` as a user starts it, for as long as a measurement takes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
import redis
import uvloop

from benchmarks.load import LoadTarget, closed_loop
from opsin.cli.shared.temporary_service import temporary_service
from server.playground import SAMPLES

SETTLING_S = 60.0
"""Time under load, in seconds, after which workers have settled on their backends."""
CLIENTS = 8
IMAGE = SAMPLES / "brazil.png"


PROCESSES = {"gateway": "opsin gateway", "worker": "opsin worker", "queue": "valkey"}
"""Process → what its command line holds."""


@dataclass(frozen=True)
class ObservedService:
    """A running service and its processes."""

    url: str
    process: psutil.Process
    """`opsin serve`."""

    def cpu_seconds(self) -> dict[str, float]:
        """User and system time of the service's processes so far."""
        spent = dict.fromkeys(PROCESSES, 0.0)
        for process in self.process.children(recursive=True):
            try:
                command, times = " ".join(process.cmdline()), process.cpu_times()
            except psutil.Error:
                continue
            for name, part in PROCESSES.items():
                if part in command:
                    spent[name] += times.user + times.system
        return spent

    def redis(self) -> redis.Redis:
        """Connect to the service's private Valkey."""
        [server] = [process for process in self.process.children(recursive=True) if process.name() in ("valkey-server", "redis-server")]
        return redis.Redis(unix_socket_path=f"{server.cwd()}/valkey.sock")


def used_memory(client: redis.Redis) -> float:
    """Return the bytes that a Redis has allocated."""
    memory: Any = client.info("memory")
    return float(memory["used_memory"])


@contextmanager
def observe(bundles: Path, *, checkout: Path | None = None, **settings: object) -> Iterator[ObservedService]:
    """Start a service as `running` does, and yield it with its processes."""
    others = psutil.Process().children()
    with running(bundles, checkout=checkout, **settings) as url:
        [process] = [child for child in psutil.Process().children() if child not in others]
        yield ObservedService(url, process)


@contextmanager
def running(bundles: Path, *, checkout: Path | None = None, **settings: object) -> Iterator[str]:
    """Start a service, let its backends settle, and yield its URL. Settings are those of `server.settings`, not the environment's.

    checkout: another one, with an environment of its own in `.venv`, whose service is started instead of this one's.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPSIN_")}
    environment |= {f"OPSIN_{name.upper()}": str(value) for name, value in settings.items()}
    python = {} if checkout is None else {"python": str(checkout / ".venv" / "bin" / "python"), "folder": checkout}
    with temporary_service(bundles, environment, **python) as url:  # type: ignore[arg-type]
        _settle(url)
        yield url


def _settle(url: str) -> None:
    """Keep every classifier of images busy for a while, since workers learn from real batches which backend is faster."""
    with httpx2.Client(base_url=url, timeout=60) as client:
        names = [model["name"] for model in client.get("/v1/models").raise_for_status().json()["models"] if model["task"] == "classify"]
        details = [client.get(f"/v1/models/{name}").raise_for_status().json() for name in names]
    learning = [model["name"] for model in details if any(worker["backends"] for worker in model["workers"])]
    targets = [LoadTarget(f"{url}/v1/classify?model={name}", [IMAGE.read_bytes()], "image/png") for name in learning]

    async def load() -> None:
        until = time.monotonic() + SETTLING_S
        await asyncio.gather(*(closed_loop(target, CLIENTS, until) for target in targets))

    if targets:
        uvloop.run(load())
    for target in targets:
        target.close()
