"""Requests that wait for a bundle that workers do not serve, or refuse."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import TYPE_CHECKING

from models.bundle import BundleSpec
from server.gateway.catalog.model_directory import ModelDirectory, no_worker, ready_bundles, serving, unavailable
from server.queue.errors import RedisUnavailable
from server.queue.gateway.fleet import Fleet
from server.settings import Settings
from server.telemetry import logs

if TYPE_CHECKING:
    from server.gateway.inference.admission import RequestContext

CHECK_INTERVAL_S = 1.0
"""Time between checks of the bundles that requests wait for."""

log = logs.get(__name__)


class WorkerLossWatchdog:
    """A watchdog that ends requests with Problem (503) if their bundle is refused, or has had no ready worker for `worker_grace`.

    It checks all requests of a gateway once a second."""

    def __init__(self, settings: Settings, directory: ModelDirectory, open_requests: Collection[RequestContext]) -> None:
        self._settings = settings
        self._directory = directory
        self._open_requests = open_requests

    async def watch_forever(self) -> None:
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            try:
                if any(context.awaited is not None for context in self._open_requests):
                    await self._check()
            except RedisUnavailable:
                pass  # unknown; the dispatcher measures how long Redis is unavailable
            except Exception:
                log.exception("check for bundles without workers failed")

    async def _check(self) -> None:
        fleet = await self._directory.fleet()
        now, grace = time.monotonic(), self._settings.worker_grace
        served: dict[str, bool] = {}
        for context in self._open_requests:
            if (spec := context.awaited) is None:
                continue
            content = spec.digest()  # requests for the old and the new content of a bundle may wait at once
            if content not in served:
                served[content] = bool(serving(fleet, spec))
            if served[content]:
                context.unserved_since = now
            elif reason := self._directory.refusal(fleet, spec):
                context.deadline.end(unavailable(spec.id, reason))
            elif now - context.unserved_since >= grace:
                context.deadline.end(no_worker(_no_worker_detail(fleet, spec, grace)))


def _no_worker_detail(fleet: Fleet, spec: BundleSpec, grace: float) -> str:
    if any((bundle.name, bundle.version) == (spec.name, spec.version) for _, bundle in ready_bundles(fleet)):
        return f"{spec.id} was replaced while this request waited, and no worker was ready for its old content for {grace:g} s"
    return f"no worker was ready for {spec.id} for {grace:g} s"
