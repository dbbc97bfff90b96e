"""The worker's end of the queue: announce, pull, reclaim, finish, hand back. Synchronous and thread-safe.

`finish`, `hand_back` and `dead_letter` keep trying for `patience`, since nobody else has the results. Everything else raises `RedisAway`
as soon as Redis does not answer or refuses to work: wait a little and call again.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from models.bundle import BundleSpec
from server.queue import keys
from server.queue.keys import Keyspace
from server.queue.messages import WORKER_FORMS, WorkerInfo, repository_states
from server.queue.script_rows import whole
from server.queue.worker.completions import Endings
from server.queue.worker.connection import Link, WorkerTimings
from server.queue.worker.delivery import QueueEntry
from server.queue.worker.intake import Intake

JANITOR_KEYS = 500
JANITOR_ROUNDS = 20


class WorkerQueue:
    """One worker's view. Its id names the consumer and `worker:<id>`; a new process takes a new id."""

    def __init__(
        self, url: str, worker_id: str, timings: WorkerTimings | None = None, forms: str = WORKER_FORMS, keyspace: Keyspace | None = None
    ) -> None:
        """`forms`: what it understands of what jobs may need (`QueuedJob.needs`)."""
        self.id = worker_id
        self._timings = timings or WorkerTimings()
        self._link = Link(url, keyspace or Keyspace(), self._timings)
        self._endings = endings = Endings(self._link, worker_id)
        self._intake = intake = Intake(self._link, worker_id, endings, frozenset(forms.split()))
        self._specs: dict[str, bytes] = {}
        self.take, self.fetch, self.reclaim, self.begin_soon = intake.take, intake.fetch, intake.reclaim, intake.begin_soon
        self.finish, self.progress, self.dead_letter = endings.finish, endings.progress, endings.dead_letter

    def announce(self, info: WorkerInfo) -> None:
        """To be called every second by a thread that proves progress: `worker:<id>` is what tells the living from the dead.

        What this worker does not understand goes back to the others then: if it gets it again, so often and not more often."""
        alive = (self.id, msgspec.msgpack.encode(info), int(self._timings.key_ttl * 1000))
        known, self._intake.redis_is_full = self._link.script("announce", *alive)
        if not known and self._specs:
            # the first time, or Redis has forgotten us: it may have lost the specs too
            self._link.script("announce", *alive, *(part for spec in self._specs.items() for part in spec))
        self._intake.hand_back_set_aside()

    def publish_spec(self, spec: BundleSpec) -> str:
        """Make `bundle.json` readable for gateways under its SHA-256, which is returned."""
        digest, data = spec.digest(), spec.to_bytes()
        self._specs[digest] = data
        self._link.command("SET", self._link.name(keys.spec(digest)), data)
        return digest

    def withdraw(self) -> None:
        """Delete `worker:<id>`: others may claim its jobs at once. Also called by a supervisor that saw the process end."""
        self._link.command("DEL", self._link.name(keys.worker(self.id)))

    def repository(self) -> tuple[dict[str, str], int]:
        """Bundle name → `loaded` | `unloaded`, absent where it is loaded; and the number of the latest change that this shows, or of an
        earlier one."""
        revision = self._link.command("GET", self._link.service_name(keys.REVISION))  # first: it is at most that of what is read next
        return repository_states(self._link.command("HGETALL", self._link.service_name(keys.REPOSITORY))), whole(revision or b"")

    def close(self) -> None:
        self._link.close()

    def waiting(self, queues: Sequence[str]) -> set[str]:
        """Those of these queues that hold jobs, of living or dead workers or of none."""
        return {queue for queue in queues if any(self._link.command("XLEN", self._link.name(stream)) for stream in keys.streams(queue))}

    def end(self, slot: int) -> None:
        """Nothing runs in this slot: its jobs wait for their next step."""
        self.begin_soon([], slot, checked=True)()

    def hand_back(self, held: Sequence[QueueEntry]) -> None:
        """Give unfinished jobs to the other workers at once, with priority and time kept; no death is counted.

        Those that must run alone go on alone. What this worker does not understand goes with them.
        """
        self._endings.hand_back(held)
        self._intake.hand_back_set_aside()

    def janitor(self) -> bool:
        """Remove what dead processes left behind. Call it often: one worker does it, every 30 s. True if it was this one."""
        done = self._link.script("janitor", JANITOR_KEYS, self.id, int(self._timings.janitor_every * 1000))
        for _ in range(JANITOR_ROUNDS - 1):
            if done:
                break
            done = self._link.script("janitor", JANITOR_KEYS)
        return bool(done >= 0)
