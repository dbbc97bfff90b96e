"""The worker's end of the queue: announce, pull, reclaim, finish, hand back. Synchronous and thread-safe.

`finish`, `hand_back` and `dead_letter` keep trying for `patience`, since nobody else has the results. Everything else raises `RedisAway`
as soon as Redis does not answer or refuses to work: wait a little and call again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from models.bundle import BundleSpec
from server.queue import keys
from server.queue.delivery import Beside, Delivery
from server.queue.endings import Endings
from server.queue.fleet import Repository
from server.queue.intake import Intake
from server.queue.keys import Keyspace
from server.queue.link import Link, WorkerTimings
from server.queue.messages import WORKER_FORMS, Progress, Reply, WorkerInfo, encode

__all__ = ["Beside", "Delivery", "WorkerQueue", "WorkerTimings"]

JANITOR_KEYS = 500
JANITOR_ROUNDS = 20


class WorkerQueue:
    """One worker's view. Its id names the consumer and `worker:<id>`; a new process takes a new id."""

    def __init__(
        self, url: str, worker_id: str, timings: WorkerTimings | None = None, forms: str = WORKER_FORMS, keyspace: Keyspace | None = None
    ) -> None:
        """`forms`: what it understands of what jobs may need (`Job.needs`)."""
        self.id = worker_id
        self._timings = timings or WorkerTimings()
        self._link = Link(url, keyspace or Keyspace(), self._timings)
        self._endings = Endings(self._link, worker_id)
        self._intake = Intake(self._link, worker_id, self._endings, frozenset(forms.split()))
        self._specs: dict[str, bytes] = {}

    def announce(self, info: WorkerInfo) -> None:
        """To be called every second by a thread that proves progress: `worker:<id>` is what tells the living from the dead.

        What this worker does not understand goes back to the others then: if it gets it again, so often and not more often."""
        alive = (self.id, encode(info), int(self._timings.key_ttl * 1000))
        known = self._link.script("announce", *alive)
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

    def repository(self) -> Repository:
        """Return what operators want loaded, and the number of their latest change."""
        revision = self._link.command("GET", self._link.service_name(keys.REVISION))  # first: it is at most that of what is read next
        return Repository.of(revision or b"0", self._link.command("HGETALL", self._link.service_name(keys.REPOSITORY)))

    def close(self) -> None:
        self._link.close()

    def pull(self, queues: Sequence[str], max_items: int, block_ms: int = 0, own: Mapping[str, int] | None = None) -> list[Delivery]:
        """At most `max_items` jobs of these queues (`keys.queue`), the most urgent first. own: queues with places of their own instead.

        If there is none it waits for one up to `block_ms` (≤ 2000).
        What is too late, cancelled, unreadable or of a dead gateway is ended here and not returned; what needs more than this worker
        understands is not returned either, and goes back to the others (`announce`).
        """
        return self._intake.complete(self.take(queues, max_items, block_ms, own))

    def take(
        self, queues: Sequence[str], max_items: int, block_ms: int = 0, own: Mapping[str, int] | None = None
    ) -> list[Delivery | Beside]:
        """The same without waiting for large messages, which `fetch` reads."""
        return self._intake.take(queues, max_items, block_ms, own or {})

    def fetch(self, beside: Beside) -> Delivery | None:
        """Read a large message, in pieces. None: there is nothing to run; the job is ended. RedisAway: it is handed back later."""
        return self._intake.fetch(beside)

    def waiting(self, queues: Sequence[str]) -> set[str]:
        """Those of these queues that hold jobs, of living or dead workers or of none."""
        return {queue for queue in queues if any(self._link.command("XLEN", self._link.name(stream)) for stream in keys.streams(queue))}

    def reclaim(self, queues: Sequence[str]) -> Delivery | None:
        """One job that a dead worker was running, to be run alone: nothing else may run in this worker during its steps. What only waited
        there goes back to everybody.

        None: there is none. Each death of a worker that ran it alone is counted; after the third the job becomes a dead letter and
        its client is told.
        """
        return self._intake.reclaim(queues)

    def begin(self, deliveries: Sequence[Delivery], slot: int) -> list[Delivery]:
        """Those whose deadline has not passed and whose client still waits; the others are ended here.

        It is recorded that these run in this slot, until they have ended, it begins the next batch or calls `end`: if this worker dies,
        only what is recorded may have killed it."""
        return self.begin_soon(deliveries, slot)()

    def begin_soon(self, deliveries: Sequence[Delivery], slot: int, *, checked: bool = False) -> Callable[[], list[Delivery]]:
        """The same, where the record is on its way when this returns: they may run before the function that is returned tells which of them
        were wanted. It is to be called by this thread, before anything else of this queue. checked: they are, as was looked at just now."""
        return self._intake.begin(deliveries, slot, checked=checked)

    def end(self, slot: int) -> None:
        """Nothing runs in this slot: its jobs wait for their next step."""
        self.begin_soon([], slot, checked=True)()

    def finish(self, results: Sequence[tuple[Delivery, Reply]]) -> list[bool]:
        """Answer jobs; one call per batch, as the statistics count calls. False: another worker was first, the result is dropped.

        Jobs whose answers could not be written within `patience` (RedisAway) are handed back at the next pull, to be run again.
        """
        return self._endings.finish(results)

    def progress(self, reports: Sequence[tuple[Delivery, Progress]]) -> None:
        """Tell how far jobs have come, to whoever asked for it (`Job.progress`). Raises RedisAway; it need not be told again."""
        self._endings.progress(reports)

    def dead_letter(self, delivery: Delivery, reason: str, kind: str = "worker-crashed") -> bool:
        """Answer 500 and keep a copy of the job in the `dead` stream. `kind`: `worker-crashed` or `model-error`."""
        return self._endings.dead_letter(delivery, reason, kind)

    def hand_back(self, deliveries: Sequence[Delivery | Beside]) -> None:
        """Give unfinished jobs to the other workers at once, with priority and time kept; no death is counted.

        Those that must run alone go on alone. What this worker does not understand goes with them.
        """
        self._endings.hand_back(deliveries)
        self._intake.hand_back_set_aside()

    def janitor(self) -> bool:
        """Remove what dead processes left behind. Call it often: one worker does it, every 30 s. True if it was this one."""
        done = self._link.script("janitor", JANITOR_KEYS, self.id, int(self._timings.janitor_every * 1000))
        for _ in range(JANITOR_ROUNDS - 1):
            if done:
                break
            done = self._link.script("janitor", JANITOR_KEYS)
        return bool(done >= 0)
