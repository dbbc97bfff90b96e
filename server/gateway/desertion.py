"""Requests for bundles that no worker serves any more: one look a second for all requests of a gateway."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType

from models.bundle import BundleSpec
from server.gateway import directory
from server.gateway.directory import Directory
from server.process.interruption import Interruption
from server.queue.dispatch import Fleet
from server.queue.errors import RedisAway
from server.settings import Settings
from server.telemetry import logs

INTERVAL = 1.0
"""Seconds between looks."""

log = logs.get(__name__)


class Desertion:
    """Ends what waits for a bundle without a ready worker for longer than `worker_grace`: Problem (503)."""

    def __init__(self, settings: Settings, directory: Directory) -> None:
        self._settings = settings
        self._directory = directory
        self._waiting: set[_Waiting] = set()

    def watched(self, spec: BundleSpec, interruption: Interruption) -> _Waiting:
        """`with` it, while a request waits for an answer."""
        return _Waiting(self._waiting, spec, interruption)

    async def watch_forever(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                if self._waiting:
                    await self._look()
            except RedisAway:
                pass  # nobody knows; the dispatcher counts how long Redis is away
            except Exception:
                log.exception("looking for bundles without workers failed")

    async def _look(self) -> None:
        fleet = await self._directory.fleet()
        now, grace = time.monotonic(), self._settings.worker_grace
        served: dict[str, bool] = {}
        for waiting in self._waiting:
            spec = waiting.spec
            content = spec.digest()  # requests for the old and the new content of a bundle may wait at once
            if content not in served:
                served[content] = bool(directory.serving(fleet, spec))
            if served[content]:
                waiting.since = now
            elif now - waiting.since >= grace:
                waiting.interruption.end(directory.no_worker(_why(fleet, spec, grace), self._settings, directory.refusal(fleet, spec)))


def _why(fleet: Fleet, spec: BundleSpec, grace: float) -> str:
    if any((bundle.name, bundle.version) == (spec.name, spec.version) for _, bundle in directory.ready_bundles(fleet)):
        return f"{spec.id} was replaced while this request waited, and no worker was ready for its old content for {grace:g} s"
    return f"no worker was ready for {spec.id} for {grace:g} s"


class _Waiting:
    """A request that waits for an answer."""

    __slots__ = ("_all", "interruption", "since", "spec")

    def __init__(self, together: set[_Waiting], spec: BundleSpec, interruption: Interruption) -> None:
        self._all = together
        self.spec = spec
        self.interruption = interruption
        self.since = time.monotonic()
        """From when on the bundle had no worker, as far as this request saw."""

    def __enter__(self) -> None:
        self._all.add(self)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._all.discard(self)
