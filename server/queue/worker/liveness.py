"""A worker's sign of life, the specs that it serves, the orders of operators that it reads, and its turn as the janitor.

Everything raises `RedisUnavailable` as soon as Redis does not answer or refuses to work: wait a little and call again.
"""

from __future__ import annotations

import msgspec

from models.bundle import BundleSpec
from server.queue import keys
from server.queue.messages import WorkerInfo, repository_states
from server.queue.script import Script, parse_whole_number
from server.queue.worker.connection import WorkerRedisLink
from server.queue.worker.lease import Leases

JANITOR_KEYS = 500
JANITOR_ROUNDS = 20


class Announcement(msgspec.Struct, frozen=True):
    """A worker's sign of life. Then its `WorkerInfo`, and the bundle.json of each spec."""

    worker: str
    ttl_ms: int
    specs: list[str]
    """Digests of specs that Redis may not have."""


ANNOUNCE = Script("announce", Announcement, tuple[int, int])
JANITOR = Script("janitor", tuple[int, str, int], int)


class Liveness:
    def __init__(self, link: WorkerRedisLink, worker_id: str, leases: Leases) -> None:
        self._link = link
        self._id = worker_id
        self._leases = leases
        self._specs: dict[str, bytes] = {}

    def announce(self, info: WorkerInfo) -> None:
        """Refresh `worker:<id>`, which distinguishes living workers from dead ones. A thread that proves progress calls it every second.

        Jobs that this worker does not understand return to the queue then: if it gets them again, so often and not more often."""
        message, ttl_ms = msgspec.msgpack.encode(info), int(self._link.timings.key_ttl * 1000)
        is_known, is_full = self._link.run(ANNOUNCE, Announcement(self._id, ttl_ms, []), [message])
        self._leases.redis_is_full = bool(is_full)
        if not is_known and self._specs:
            # the first time, or Redis has forgotten us: it may have lost the specs too
            self._link.run(ANNOUNCE, Announcement(self._id, ttl_ms, list(self._specs)), [message, *self._specs.values()])
        self._leases.return_unsupported()

    def publish_spec(self, spec: BundleSpec) -> str:
        """Make `bundle.json` readable for gateways under its SHA-256, which is returned."""
        digest, data = spec.digest(), spec.to_bytes()
        self._specs[digest] = data
        self._link.command("SET", self._link.name(keys.spec(digest)), data)
        return digest

    def withdraw(self) -> None:
        """Delete `worker:<id>`: others may claim its jobs at once. Also called by a supervisor that saw the process end."""
        self._link.command("DEL", self._link.name(keys.worker(self._id)))

    def repository(self) -> tuple[dict[str, str], int]:
        """Return bundle name → `loaded` | `unloaded`, absent where it is loaded; and the number of the latest change that this shows, or of
        an earlier one."""
        revision = self._link.command("GET", self._link.service_name(keys.REVISION))  # first: it is at most that of what is read next
        states = repository_states(self._link.command("HGETALL", self._link.service_name(keys.REPOSITORY)))
        return states, parse_whole_number(revision or b"")

    def janitor(self) -> bool:
        """Remove what dead processes left behind. Call it often: one worker does it, every 30 s. True if it was this one."""
        done = self._link.run(JANITOR, (JANITOR_KEYS, self._id, int(self._link.timings.janitor_every * 1000)))
        for _ in range(JANITOR_ROUNDS - 1):
            if done:
                break
            done = self._link.run(JANITOR, (JANITOR_KEYS, "", 0))
        return done >= 0
