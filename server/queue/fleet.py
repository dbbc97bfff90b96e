"""Who serves what, and how long the queues are: what a gateway knows of the rest of the service."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from models.bundle import BundleError, BundleSpec
from server.queue import keys, lua
from server.queue.job import ServedBundle, UnknownVersion, WorkerInfo, decode_worker
from server.queue.repository import states_of
from server.queue.rows import StreamLoad

log = logging.getLogger(__name__)

_LOADING, _READY = 1, 1_000_000
"""Any number of workers that only load a content weigh less than one that is ready to serve another."""


@dataclass(frozen=True)
class Fleet:
    """The living workers, the specs they serve or have served, and the operators' repository states."""

    workers: tuple[WorkerInfo, ...] = ()
    specs: Mapping[tuple[str, str], BundleSpec] = field(default_factory=dict)
    """(name, version) → spec. What was seen once stays known while no worker serves it: its requests wait for one."""
    repository: Mapping[str, str] = field(default_factory=dict)
    """Bundle name → `loaded` | `unloaded`; absent: loaded."""

    def ready(self, name: str, version: str) -> list[ServedBundle]:
        """The bundle as each worker that is ready for it announces it."""
        return [
            bundle
            for worker in self.workers
            if worker.state == "ready"
            for bundle in worker.bundles
            if (bundle.name, bundle.version, bundle.state) == (name, version, "ready")
        ]

    def items_per_second(self, bundle_id: str) -> float:
        """What the ready workers measured, added up; 0 while unknown."""
        name, _, version = bundle_id.partition("@")
        return sum(bundle.items_per_second for bundle in self.ready(name, version))


@dataclass(frozen=True)
class QueueDepth:
    """Unfinished jobs of one bundle and priority, waiting or running."""

    items: int
    oldest_age_s: float


@dataclass(frozen=True)
class Load:
    """The queue as the scripts report it."""

    now_ms: int
    items: int
    nbytes: int
    depths: Mapping[tuple[str, str], QueueDepth] = field(default_factory=dict)
    """(bundle, priority) → depth."""

    @staticmethod
    def of(answer: Any) -> Load:
        now_ms, items, nbytes, streams = answer
        depths: dict[tuple[str, str], QueueDepth] = {}
        for stream in map(StreamLoad._make, streams):
            name = keys.StreamName.of(stream.stream.decode())
            age = max(0.0, (now_ms - stream.oldest_ms) / 1000) if stream.oldest_ms else 0.0
            known = depths.get((name.bundle, name.priority), QueueDepth(0, 0.0))  # several contents, and what was handed back
            depths[name.bundle, name.priority] = QueueDepth(known.items + stream.length, max(known.oldest_age_s, age))
        return Load(now_ms, items, nbytes, depths)

    def seconds_to_drain(self, fleet: Fleet, answered_per_second: float) -> int:
        """For Retry-After, at least 1: each bundle's queue over its announced throughput, or over this gateway's rate of answers."""
        seconds = 0.0
        for (bundle, _), depth in self.depths.items():
            rate = fleet.items_per_second(bundle) or answered_per_second
            seconds += depth.items / rate if rate > 0 else 0.0
        return max(1, math.ceil(seconds))


class FleetReader:
    """Reads the fleet from Redis and keeps the specs, which never change under their digest."""

    def __init__(self, client: Any) -> None:
        self._redis = client
        self._script = client.register_script(lua.source("fleet"))
        self._by_digest: dict[str, BundleSpec] = {}
        self._specs: dict[tuple[str, str], BundleSpec] = {}

    async def read(self) -> Fleet:
        messages, flat = await self._script()
        workers = tuple(worker for message in messages if (worker := _decode(message)) is not None)
        announced = {bundle.digest for worker in workers for bundle in worker.bundles if bundle.digest}
        await self._fetch(sorted(announced - self._by_digest.keys()))
        known = {name: self._by_digest[digest] for name, digest in self._prevailing(workers).items()}
        if any(self._specs.get(name) is not spec for name, spec in known.items()):
            self._specs = self._specs | known
        return Fleet(workers, self._specs, states_of(flat))

    def _prevailing(self, workers: Sequence[WorkerInfo]) -> dict[tuple[str, str], str]:
        """(name, version) → the digest that most ready workers announce; without one, what is being loaded, then what was known before.

        A worker whose copy is broken, or another one than the others', hides nothing."""
        votes: dict[tuple[str, str], Counter[str]] = {}
        for worker in workers:
            for bundle in worker.bundles:
                if bundle.digest in self._by_digest:
                    weight = _READY if (worker.state, bundle.state) == ("ready", "ready") else _LOADING if bundle.state == "loading" else 0
                    votes.setdefault((bundle.name, bundle.version), Counter())[bundle.digest] += weight
        return {name: self._elected(name, counts) for name, counts in votes.items()}

    def _elected(self, name: tuple[str, str], votes: Counter[str]) -> str:
        return max(votes, key=lambda digest: (votes[digest], self._is_known(name, digest), digest))

    def _is_known(self, name: tuple[str, str], digest: str) -> bool:
        return name in self._specs and self._specs[name].digest() == digest

    async def _fetch(self, digests: list[str]) -> None:
        if not digests:
            return
        for digest, data in zip(digests, await self._redis.mget([keys.spec(digest) for digest in digests]), strict=True):
            if data is None:  # announced before it was published: the next look finds it
                continue
            try:
                self._by_digest[digest] = BundleSpec.from_bytes(data, f"spec {digest[:12]}").published_as(digest)
            except BundleError as error:
                log.warning("a worker serves a bundle that this gateway cannot read: %s", error)


def _decode(message: bytes) -> WorkerInfo | None:
    try:
        return decode_worker(message)
    except (UnknownVersion, msgspec.MsgspecError) as error:
        log.warning("a worker announces itself in a form that this gateway cannot read: %s", error)
        return None
