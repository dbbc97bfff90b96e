"""Requests that wait for a bundle which workers do not serve, or refuse."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from types import TracebackType

from models.bundle import BundleSpec
from server.concurrency.cancellation import AsyncCancelScope
from server.gateway.catalog.model_directory import Directory, no_worker, ready_bundles, serving, unavailable
from server.queue.errors import RedisAway
from server.queue.gateway.fleet import Fleet
from server.settings import Settings
from server.telemetry import logs

LOOK_EVERY = 1.0
"""Seconds between looks at the bundles that requests wait for."""

log = logs.get(__name__)


class Desertion:
    """Ends requests that wait for a bundle that is refused, or longer than `worker_grace` for one that no ready worker serves: Problem
    (503).

    It looks once a second for all requests of a gateway."""

    def __init__(self, settings: Settings, directory: Directory) -> None:
        self._settings = settings
        self._directory = directory
        self._waiting: set[_Waiting] = set()

    def watched(self, spec: BundleSpec, interruption: AsyncCancelScope) -> _Waiting:
        """`with` it, while a request waits for an answer."""
        return _Waiting(self._waiting, spec, interruption)

    async def watch_forever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
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
                served[content] = bool(serving(fleet, spec))
            if served[content]:
                waiting.since = now
            elif reason := self._directory.refusal(fleet, spec):
                waiting.interruption.end(unavailable(spec.id, reason))
            elif now - waiting.since >= grace:
                waiting.interruption.end(no_worker(_why(fleet, spec, grace)))


def _why(fleet: Fleet, spec: BundleSpec, grace: float) -> str:
    if any((bundle.name, bundle.version) == (spec.name, spec.version) for _, bundle in ready_bundles(fleet)):
        return f"{spec.id} was replaced while this request waited, and no worker was ready for its old content for {grace:g} s"
    return f"no worker was ready for {spec.id} for {grace:g} s"


@dataclass(eq=False, slots=True)
class _Waiting:
    """A request that waits for an answer."""

    together: set[_Waiting]
    spec: BundleSpec
    interruption: AsyncCancelScope
    since: float = field(default_factory=time.monotonic)
    """From when on the bundle had no worker, as far as this request saw."""

    def __enter__(self) -> None:
        self.together.add(self)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.together.discard(self)
