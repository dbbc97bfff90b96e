"""One worker's end of the queue: its sign of life, its turn as the janitor, and the parts that take and end jobs. It is thread-safe.

Everything raises `RedisUnavailable` as soon as Redis does not answer or refuses to work: wait a little and call again.
"""

from __future__ import annotations

import math
import time

import msgspec

from models.bundle import BundleSpec
from server.queue import keys
from server.queue.keys import Keyspace
from server.queue.messages import WORKER_FORMS, WorkerInfo, repository_states
from server.queue.script import Script, parse_whole_number
from server.queue.worker.ack import Acks
from server.queue.worker.connection import WorkerRedisLink, WorkerTimings
from server.queue.worker.job_intake import JobIntake

PUBLISHED_INTERVAL_S = 60.0
"""Time between signs of life that keep specs from expiring."""
JANITOR_KEYS = 500
JANITOR_ROUNDS = 20


class Announcement(msgspec.Struct, frozen=True):
    """A worker's sign of life. Then its `WorkerInfo`, and the bundle.json of each spec."""

    worker: str
    ttl_ms: int
    specs: list[str]
    """Digests of specs that Redis may not have."""
    published: dict[str, bool]
    """Digest of each spec that must not expire → whether it is served: gateways that start later know it then. Empty: not this time."""


ANNOUNCE = Script("announce", Announcement, tuple[int, int])
JANITOR = Script("janitor", tuple[int, str, int], int)


class WorkerQueue:
    """Parts of the queue that share a connection. Its id names the consumer and `worker:<id>`; a new process takes a new id."""

    def __init__(
        self, url: str, worker_id: str, timings: WorkerTimings | None = None, forms: str = WORKER_FORMS, keyspace: Keyspace | None = None
    ) -> None:
        """`forms`: the forms of messages that it understands (`QueuedJob.needs`)."""
        self.id = worker_id
        self.link = WorkerRedisLink(url, keyspace or Keyspace(), timings or WorkerTimings())
        self.acks = Acks(self.link, worker_id)
        self.intake = JobIntake(self.link, worker_id, self.acks, frozenset(forms.split()))
        self._specs: dict[str, bytes] = {}
        self._published: dict[str, bool] = {}
        self._published_at = -math.inf

    def announce(self, info: WorkerInfo) -> None:
        """Refresh `worker:<id>`, which distinguishes living workers from dead ones. A thread that proves progress calls it every second.

        Jobs that this worker does not understand return to the queue then: if it gets them again, so often and not more often."""
        message, ttl_ms = msgspec.msgpack.encode(info), int(self.link.timings.key_ttl * 1000)
        served = {bundle.digest for bundle in info.bundles if bundle.state == "ready"}
        published = {digest: digest in served for digest in self._specs}
        is_due = published != self._published or time.monotonic() - self._published_at >= PUBLISHED_INTERVAL_S
        is_known, is_full = self.link.run(ANNOUNCE, Announcement(self.id, ttl_ms, [], published if is_due else {}), [message])
        self.intake.redis_is_full = bool(is_full)
        if not is_known and self._specs:
            # the first time, or Redis has forgotten us: it may have lost the specs too
            self.link.run(ANNOUNCE, Announcement(self.id, ttl_ms, list(self._specs), published), [message, *self._specs.values()])
        if is_due:
            self._published, self._published_at = published, time.monotonic()
        self.intake.return_unsupported()

    def publish_spec(self, spec: BundleSpec) -> str:
        """Make `bundle.json` readable for gateways under its SHA-256, which is returned."""
        digest, data = spec.digest(), spec.to_bytes()
        self._specs[digest] = data
        self.link.command("SET", self.link.name(keys.spec(digest)), data)
        return digest

    def withdraw(self) -> None:
        """Delete `worker:<id>`: others may claim its jobs at once. Also called by a supervisor that saw the process end."""
        self.link.command("DEL", self.link.name(keys.worker(self.id)))

    def repository(self) -> tuple[dict[str, str], int]:
        """Return bundle name → `loaded` | `unloaded`, absent where it is loaded; and the number of the latest change that this shows, or of
        an earlier one."""
        revision = self.link.command("GET", self.link.service_name(keys.REVISION))  # first: it is at most that of what is read next
        states = repository_states(self.link.command("HGETALL", self.link.service_name(keys.REPOSITORY)))
        return states, parse_whole_number(revision or b"")

    def janitor(self) -> bool:
        """Remove what dead processes left behind. Call it often: one worker does it, every 30 s. True if it was this one."""
        done = self.link.run(JANITOR, (JANITOR_KEYS, self.id, int(self.link.timings.janitor_every * 1000)))
        for _ in range(JANITOR_ROUNDS - 1):
            if done:
                break
            done = self.link.run(JANITOR, (JANITOR_KEYS, "", 0))
        return done >= 0

    def close(self) -> None:
        self.link.close()
