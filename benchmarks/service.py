"""`opsin serve` as a user starts it, for as long as a measurement takes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import uvloop

from benchmarks.load import LoadTarget, closed_loop
from opsin.cli.shared.temporary_service import temporary_service
from server.playground import SAMPLES

SETTLING_S = 60.0
"""Time under load, in seconds, after which workers have settled on their backends."""
CLIENTS = 8
IMAGE = SAMPLES / "brazil.png"


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
