"""Requests that wait for a bundle that workers do not serve, or refuse."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from types import TracebackType

from models.bundle import BundleSpec
from server.concurrency import AsyncCancelScope
from server.gateway.catalog.model_directory import ModelDirectory, no_worker, ready_bundles, serving, unavailable
from server.queue.errors import RedisUnavailable
from server.queue.gateway.fleet import Fleet
from server.settings import Settings
from server.telemetry import logs

CHECK_INTERVAL_S = 1.0
"""Time between checks of the bundles that requests wait for."""

log = logs.get(__name__)


class WorkerLossWatchdog:
    """A watchdog that ends requests with Problem (503) if their bundle is refused, or has had no ready worker for `worker_grace`.

    It checks all requests of a gateway once a second."""

    def __init__(self, settings: Settings, directory: ModelDirectory) -> None:
        self._settings = settings
        self._directory = directory
        self._waiting: set[_GuardedRequest] = set()

    def guard(self, spec: BundleSpec, interruption: AsyncCancelScope) -> _GuardedRequest:
        """Return a context manager for the time in which a request waits for an answer."""
        return _GuardedRequest(self._waiting, spec, interruption)

    async def watch_forever(self) -> None:
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            try:
                if self._waiting:
                    await self._check()
            except RedisUnavailable:
                pass  # unknown; the dispatcher measures how long Redis is unavailable
            except Exception:
                log.exception("check for bundles without workers failed")

    async def _check(self) -> None:
        fleet = await self._directory.fleet()
        now, grace = time.monotonic(), self._settings.worker_grace
        served: dict[str, bool] = {}
        for waiting in self._waiting:
            spec = waiting.spec
            content = spec.digest()  # requests for the old and the new content of a bundle may wait at once
            if content not in served:
                served[content] = bool(serving(fleet, spec))
            if served[content]:
                waiting.unserved_since = now
            elif reason := self._directory.refusal(fleet, spec):
                waiting.interruption.end(unavailable(spec.id, reason))
            elif now - waiting.unserved_since >= grace:
                waiting.interruption.end(no_worker(_no_worker_detail(fleet, spec, grace)))


def _no_worker_detail(fleet: Fleet, spec: BundleSpec, grace: float) -> str:
    if any((bundle.name, bundle.version) == (spec.name, spec.version) for _, bundle in ready_bundles(fleet)):
        return f"{spec.id} was replaced while this request waited, and no worker was ready for its old content for {grace:g} s"
    return f"no worker was ready for {spec.id} for {grace:g} s"


@dataclass(eq=False, slots=True)
class _GuardedRequest:
    """A request that waits for an answer."""

    guarded: set[_GuardedRequest]
    spec: BundleSpec
    interruption: AsyncCancelScope
    unserved_since: float = field(default_factory=time.monotonic)
    """Time since which the bundle had no worker, as this request knows."""

    def __enter__(self) -> None:
        self.guarded.add(self)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.guarded.discard(self)
