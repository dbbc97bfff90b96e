"""The fleet: the bundles that operators want loaded, the workers as a gateway knows them, and which content of a bundle it prepares for."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import msgspec
import redis

from models.bundle import BundleError, BundleSpec
from server.queue import keys
from server.queue.connect import RedisUnavailable
from server.queue.gateway.connection import GatewayRedisLink
from server.queue.messages import UnknownVersion, WorkerInfo, decode, repository_states

PASS_MS, LONG_JOB_MS = 50, 1000
"""A pass, and a job of an unknown number of steps, count for so much before any worker has measured them."""
NO_RATES = 0.0, 0.0
SPECS_AT_ONCE = 16
"""Number of remembered specs that are read at once: all of them would hold up requests, and take longer than a command may."""


@dataclass(frozen=True)
class Fleet:
    """The living workers, the specs they serve or have served, and the operators' repository states."""

    workers: tuple[WorkerInfo, ...] = ()
    specs: Mapping[tuple[str, str], BundleSpec] = field(default_factory=dict)
    """(name, version) → spec. What was seen once stays known while no worker serves it: its requests wait for one."""
    repository: Mapping[str, str] = field(default_factory=dict)
    """Bundle name → `loaded` | `unloaded`; absent: loaded."""
    remembered: frozenset[tuple[str, str]] = frozenset()
    """(name, version) of specs that no worker has announced since this gateway started: Redis remembers them for some days."""

    def work_ms(self, bundle_id: str, steps: int | None, *, takes_long: bool) -> int:
        """Return how long the service takes for one job, by what its ready workers measured. `steps`: None if unknown."""
        items_per_second, steps_per_second = self._rates.get(bundle_id, NO_RATES)
        if steps is not None:
            return math.ceil(1000 * steps / steps_per_second) if steps_per_second > 0 else PASS_MS * steps
        return math.ceil(1000 / items_per_second) if items_per_second > 0 else LONG_JOB_MS if takes_long else PASS_MS

    @cached_property
    def _rates(self) -> Mapping[str, tuple[float, float]]:
        """Jobs and steps per second of each bundle, those of all ready workers added up."""
        rates: dict[str, tuple[float, float]] = {}
        for worker in self.workers:
            for bundle in worker.bundles if worker.state == "ready" else ():
                if bundle.state == "ready":
                    items, steps = rates.get(bundle_id := f"{bundle.name}@{bundle.version}", NO_RATES)
                    rates[bundle_id] = items + bundle.items_per_second, steps + bundle.steps_per_second
        return rates


log = logging.getLogger(__name__)

_LOADING, _READY = 1, 1_000_000
"""Any number of workers that only load a content weigh less than one that is ready to serve another."""


class FleetReader:
    """A cache of the fleet, and of the specs, which never change under their digest."""

    def __init__(self, link: GatewayRedisLink, news: float) -> None:
        self._link = link
        self._news = news
        self._by_digest: dict[str, BundleSpec] = {}
        self._specs: dict[tuple[str, str], BundleSpec] = {}
        self._remembered: dict[tuple[str, str], BundleSpec] | None = None
        self._read_at = 0.0
        self._lock = asyncio.Lock()
        self.latest = Fleet()

    async def read(self, *, fresh: bool = False) -> Fleet:
        """Return who serves what, at most `news` old. Raises RedisUnavailable at once while Redis does not answer."""
        now = time.monotonic()
        oldest = now if fresh else now - self._news
        if self._read_at <= oldest:
            async with self._lock:
                if self._read_at <= oldest:
                    read_at = time.monotonic()
                    if self._remembered is None:
                        self._remembered = await self._read_remembered()
                    self.latest = await self._link.call_limited(partial(self._read_all, self._remembered))
                    self._read_at = read_at
        return self.latest

    async def spec(self, digest: str) -> BundleSpec | None:
        """Return a published spec by its SHA-256, served or not; None if there is none. Raises RedisUnavailable, as `read`."""
        if digest not in self._by_digest:
            await self._link.call_limited(lambda: self._fetch([digest]))
        return self._by_digest.get(digest)

    async def set_repository(self, name: str, state: str) -> int:
        """Order a bundle `loaded` or `unloaded`: workers follow, gateways read it in `Fleet.repository`.

        Returns the repository's revision; a worker whose `repository_revision` is as high has followed. Raises RedisUnavailable.
        """
        service = self._link.service_name
        await self._link.command("HSET", service(keys.REPOSITORY), name, state)
        try:
            revision = await self._link.command("INCR", service(keys.REVISION))
        except redis.exceptions.ResponseError as error:  # no number
            away = RedisUnavailable.unreadable(keys.REVISION, error)
            self._link.mark_unavailable(away)
            raise away from error
        self._read_at = 0.0
        return int(revision)

    async def _read_all(self, remembered_specs: Mapping[tuple[str, str], BundleSpec]) -> Fleet:
        ids = await self._link.resp.command("SMEMBERS", self._link.name(keys.WORKERS))
        messages = await self._values([keys.worker(id_.decode(errors="replace")) for id_ in ids])
        flat = await self._link.resp.command("HGETALL", self._link.service_name(keys.REPOSITORY))
        workers = tuple(worker for message in messages if message is not None and (worker := _decode(message)) is not None)
        announced = {bundle.digest for worker in workers for bundle in worker.bundles if bundle.digest}
        await self._fetch(sorted(announced - self._by_digest.keys()))
        specs = {name: self._by_digest[digest] for name, digest in self._prevailing(workers).items()}
        if any(self._specs.get(name) is not spec for name, spec in specs.items()):
            self._specs = self._specs | specs
        remembered = remembered_specs.keys() - self._specs.keys()
        specs_or_remembered = self._specs | {name: remembered_specs[name] for name in remembered} if remembered else self._specs
        return Fleet(workers, specs_or_remembered, repository_states(flat), frozenset(remembered))

    async def _read_remembered(self) -> dict[tuple[str, str], BundleSpec]:
        """Return (name, version) → the spec that was served last, of what was served in the last days."""
        members = await self._link.command("ZRANGE", self._link.name(keys.KNOWN), 0, -1)
        digests = [member.decode(errors="replace") for member in members]
        missing = [digest for digest in digests if digest not in self._by_digest]
        for at in range(0, len(missing), SPECS_AT_ONCE):
            await self._link.call_limited(partial(self._fetch, missing[at : at + SPECS_AT_ONCE]))
        specs = [self._by_digest[digest] for digest in digests if digest in self._by_digest]  # the one that was served last comes last
        return {(spec.name, spec.version): spec for spec in specs}

    def _prevailing(self, workers: Sequence[WorkerInfo]) -> dict[tuple[str, str], str]:
        """Return (name, version) → the digest that most ready workers announce; without one, what is being loaded, then the one before.

        A worker whose copy is broken, or another one than the others', hides nothing."""
        votes: dict[tuple[str, str], Counter[str]] = {}
        for worker in workers:
            for bundle in worker.bundles:
                if bundle.digest in self._by_digest:
                    weight = _READY if (worker.state, bundle.state) == ("ready", "ready") else _LOADING if bundle.state == "loading" else 0
                    votes.setdefault((bundle.name, bundle.version), Counter())[bundle.digest] += weight
        specs = {name: spec.digest() for name, spec in self._specs.items()}
        return {name: max(counts, key=lambda digest: (counts[digest], digest == specs.get(name), digest)) for name, counts in votes.items()}

    async def _fetch(self, digests: list[str]) -> None:
        for digest, data in zip(digests, await self._values([keys.spec(digest) for digest in digests]), strict=True):
            if data is None:  # announced before it was published: the next look finds it
                continue
            try:
                self._by_digest[digest] = BundleSpec.from_bytes(data, f"spec {digest[:12]}").with_digest(digest)
            except BundleError as error:
                log.warning("a worker serves a bundle that this gateway cannot read: %s", error)

    async def _values(self, names: list[str]) -> list[bytes | None]:
        return await self._link.resp.command("MGET", *map(self._link.name, names)) if names else []


def _decode(message: bytes) -> WorkerInfo | None:
    try:
        return decode(WorkerInfo, message)
    except (UnknownVersion, msgspec.MsgspecError) as error:
        log.warning("a worker announces itself in a form that this gateway cannot read: %s", error)
        return None
