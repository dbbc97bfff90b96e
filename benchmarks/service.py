"""`opsin serve` as a user starts it, for as long as a measurement takes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from opsin.cli.shared.temporary_service import temporary_service

MEASURED_SECONDS = 300.0
"""Timeout in seconds for measuring all bundles."""


@contextmanager
def running(bundles: Path, *, checkout: Path | None = None, **settings: object) -> Iterator[str]:
    """Start a service, measure its bundles, and yield its URL. Settings are those of `server.settings`, not the environment's.

    checkout: another one, with an environment of its own in `.venv`, whose service is started instead of this one's.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPSIN_")}
    environment |= {f"OPSIN_{name.upper()}": str(value) for name, value in settings.items()}
    python = {} if checkout is None else {"python": str(checkout / ".venv" / "bin" / "python"), "folder": checkout}
    with temporary_service(bundles, environment, **python) as url:  # type: ignore[arg-type]
        _await_measured(url)
        yield url


def _await_measured(url: str) -> None:
    """Wait until every bundle is measured, which happens while nothing runs; before, its speed is unknown."""
    until = time.monotonic() + MEASURED_SECONDS
    while time.monotonic() < until:
        bundles = httpx2.get(f"{url}/v1/status", timeout=60).raise_for_status().json()["bundles"]
        if bundles and all(bundle["items_per_second"] > 0 for bundle in bundles):
            return
        time.sleep(0.2)
    raise TimeoutError(f"bundles were not measured within {MEASURED_SECONDS:.0f} s")
