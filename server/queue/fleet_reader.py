"""How a gateway reads who serves what, and which content of a bundle it prepares for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from models.bundle import BundleError, BundleSpec
from server.queue import keys, lua
from server.queue.fleet import Fleet
from server.queue.job import UnknownVersion, WorkerInfo, decode_worker
from server.queue.presence import Presence
from server.queue.repository import states_of

log = logging.getLogger(__name__)

_LOADING, _READY = 1, 1_000_000
"""Any number of workers that only load a content weigh less than one that is ready to serve another."""


class FleetReader:
    """Reads at most once in `news` seconds, and keeps the specs, which never change under their digest."""

    def __init__(self, client: Any, presence: Presence, news: float) -> None:
        self._redis = client
        self._presence = presence
        self._news = news
        self._script = client.register_script(lua.source("fleet"))
        self._by_digest: dict[str, BundleSpec] = {}
        self._specs: dict[tuple[str, str], BundleSpec] = {}
        self._read_at = 0.0
        self._lock = asyncio.Lock()
        self.latest = Fleet()

    async def fleet(self, *, fresh: bool) -> Fleet:
        asked_at = time.monotonic()
        oldest = asked_at if fresh else asked_at - self._news
        if self._read_at <= oldest:
            async with self._lock:
                if self._read_at <= oldest:
                    read_at = time.monotonic()
                    self.latest = await self._presence.ask(self._read)
                    self._read_at = read_at
        return self.latest

    async def spec(self, digest: str) -> BundleSpec | None:
        """A published spec by its SHA-256, whoever serves it; None if nobody has published it. Raises RedisAway."""
        if digest not in self._by_digest:
            await self._presence.ask(lambda: self._fetch([digest]))
        return self._by_digest.get(digest)

    def forget(self) -> None:
        """What was read is known to be old."""
        self._read_at = 0.0

    async def _read(self) -> Fleet:
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
