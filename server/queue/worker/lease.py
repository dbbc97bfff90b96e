"""A worker's hold of jobs: it takes the most urgent ones, waits if there are none, claims those of dead workers, and begins steps."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import msgspec
import redis

from server.queue import keys
from server.queue.errors import RedisAway
from server.queue.messages import HANDICAP_S, QueuedJob, Reply, UnknownVersion, decode
from server.queue.script import Script
from server.queue.script_rows import Pull, StepBegin, TakenRow, parse_whole_number
from server.queue.worker import large_values
from server.queue.worker.ack import Acks, Completion
from server.queue.worker.connection import MAX_BLOCK_S, Link
from server.queue.worker.delivery import Delivery, QueueEntry

T = TypeVar("T")

log = logging.getLogger(__name__)


class Reclaimed(msgspec.Struct, frozen=True, array_like=True):
    """A job that a dead worker was running, or none."""

    now_ms: int
    row: TakenRow | None = None
    deaths: int = 0
    """Deaths of workers that ran it alone."""
    dead_worker: bytes = b""


PULL = Script("pull", Pull, tuple[int, list[TakenRow], list[tuple[bytes, int, int]]])
RECLAIM = Script("reclaim", tuple[str, list[str]], Reclaimed)
BEGIN_STEP = Script("begin_step", StepBegin, tuple[int, list[bytes]])
CREATE_GROUPS = Script("create_groups", list[str], bytes)
MAX_WORKER_DEATHS = 3
MAX_READ_ATTEMPTS = 2
"""For streams whose groups may be missing."""


@dataclass(frozen=True)
class Capacity:
    """Places for jobs. Several queues may share a pool of places; those without place are left out."""

    places: tuple[int, ...]
    pool_of: Mapping[str, int]
    """Work stream → index of its pool."""

    @cached_property
    def smallest(self) -> int:
        return min(self.places[index] for index in self.pool_of.values())

    @cached_property
    def message(self) -> msgspec.Raw:
        """`Pull.capacity`; Lua counts from 1."""
        streams = [(stream, handicap_ms(stream), index + 1) for stream, index in self.pool_of.items()]
        return msgspec.Raw(msgspec.msgpack.encode((streams, self.places)))

    def within(self, rows: Sequence[TakenRow]) -> list[TakenRow]:
        """The most urgent for which there is place."""
        left, chosen = list(self.places), []
        for row in sorted(rows, key=lambda row: row.added_ms + handicap_ms(row.stream.decode())):
            index = self.pool_of[row.stream.decode()]
            if left[index] > 0:
                left[index] -= 1
                chosen.append(row)
        return chosen


class Leases:
    """Everything but `fetch` and `return_to_queue` raises RedisAway as soon as Redis does not answer: wait a little and call again."""

    def __init__(self, link: Link, worker_id: str, acks: Acks, forms: frozenset[str]) -> None:
        """`forms`: what this worker understands of what jobs may need."""
        self._link = link
        self._id = worker_id
        self._acks = acks
        self._forms = forms
        self._warned_forms: set[str] = set()
        """Forms that jobs needed, that this worker does not understand, and that the log has named."""
        self._set_aside: list[Delivery] = []
        """Such jobs."""
        self._may_have_pending = False
        """Whether more may be pending under this worker's name than what it holds."""
        self.backlog: Mapping[str, tuple[int, int]] | None = None
        """Work stream → how many jobs still waited there after the last look, and when the next of them was queued, in ms on Redis' clock
        (0: before that was set back). None: unknown. Where nothing waited, the next look may wait at once."""
        self.redis_is_full = True
        """Whether Redis may refuse a plain command that needs memory, or has not been asked yet. Steps run even then."""

    def take(self, queues: Sequence[str], max_items: int, block_ms: int = 0, own: Mapping[str, int] | None = None) -> list[QueueEntry]:
        """At most `max_items` jobs of these queues (`keys.queue`), the most urgent first. own: queues with places of their own instead.

        If there is none, or no place for one, it waits up to `block_ms` (≤ 2000). `fetch` reads large messages: an entry becomes a
        `Delivery`.
        What is too late, cancelled, unreadable or of a dead gateway is ended here and not returned; what needs more than this worker
        understands is not returned either, and goes back to the others (`return_unsupported`).
        """
        capacity = _capacity(tuple(queues), max_items, tuple((own or {}).items()))
        if not capacity.pool_of:
            time.sleep(block_ms / 1000)
            return []
        self._acks.return_deferred()
        if self._may_have_pending and (found := self._recover_pending(capacity)):
            return found
        if block_ms <= 0 or self.backlog is None or self.backlog:
            rows = self._pull(capacity)
            if rows or block_ms <= 0:
                return self._accept(rows, alone=False)
        return self._wait(capacity, min(block_ms, int(MAX_BLOCK_S * 1000)))

    def fetch(self, held: QueueEntry) -> Delivery | None:
        """Read a large message, in pieces. None: there is nothing to run; the job is ended. RedisAway: it is handed back later."""
        with self._acks.return_later_if_away([held]):
            message = self._link.patiently(lambda: large_values.read(self._link, keys.blob(held.job_id)))
        # of another length, it was lost, or the job ended meanwhile
        job = self._decode(held.job_id, message) if len(message) == held.nbytes else None
        if isinstance(job, QueuedJob):
            return self._supported_or_set_aside(Delivery.of(held, job))
        self._end([Completion(held, job, skip_statistics=job is None)])
        return None

    def reclaim(self, queues: Sequence[str]) -> Delivery | None:
        """One job that a dead worker was running, to be run alone: nothing else may run in this worker during its steps. What only waited
        there goes back to everybody.

        None: there is none. Each death of a worker that ran it alone is counted; after the third the job becomes a dead letter and
        its client is told.
        """
        if not self._link.absence_counts:
            return None
        streams = [stream for queue in queues for stream in keys.streams(queue)]
        while True:
            claimed = self._claiming(lambda: self._link.run(RECLAIM, (self._id, streams)))
            self._link.set_clock(claimed.now_ms)
            if claimed.row is None:
                return None
            for held in self._accept([claimed.row], alone=True):
                delivery = held if isinstance(held, Delivery) else self.fetch(held)
                if delivery is not None and claimed.deaths < MAX_WORKER_DEATHS:
                    return delivery
                if delivery is not None:
                    last = claimed.dead_worker.decode()
                    reason = f"{claimed.deaths} workers died while they ran this job alone, the last one was {last}"
                    self._acks.dead_letter(delivery, reason)

    def send_begin_step(self, deliveries: Sequence[Delivery], slot: int, *, checked: bool = False) -> Callable[[], list[Delivery]]:
        """Record that these run in this slot, until they have ended or it begins the next batch: if this worker dies, only what is recorded
        may have killed it. The record is on its way when this returns.

        Returns a function that tells which of them are still wanted: their deadline has not passed and their client waits; the others are
        ended by it. This thread calls it before anything else of this queue. checked: all of them are, as was looked at just now.
        """
        how = "alone" if any(held.alone for held in deliveries) else "together"
        running = msgspec.msgpack.encode((how, [held.job.id for held in deliveries]))
        if checked and not self.redis_is_full:  # a plain command costs Redis a third of a step; the beat lets its key expire
            self._link.post("HSET", self._link.name(keys.suspects(self._id)), slot, running)
            return lambda: list(deliveries)
        jobs = [(held.job.id, held.job.deadline_ms, held.gateway) for held in deliveries]
        sent_at = time.monotonic()
        answer = self._link.send(BEGIN_STEP, StepBegin(self._id, slot, self._link.absence_counts, jobs), [running])

        def wanted() -> list[Delivery]:
            now_ms, dropped = answer()
            self._link.set_clock(now_ms, sent_at)
            self._end([self._drop_completion(held, why) for held, why in zip(deliveries, dropped, strict=True) if why])
            return [held for held, why in zip(deliveries, dropped, strict=True) if not why]

        return wanted

    def end(self, slot: int) -> None:
        """Record that nothing runs in this slot: its jobs wait for their next step."""
        self.send_begin_step([], slot, checked=True)()

    def waiting(self, queues: Sequence[str]) -> set[str]:
        """Return those of these queues that hold jobs, of living or dead workers or of none."""
        return {queue for queue in queues if any(self._link.command("XLEN", self._link.name(stream)) for stream in keys.streams(queue))}

    def return_to_queue(self, entries: Sequence[QueueEntry]) -> None:
        """Give unfinished jobs to the other workers at once, with priority and time kept; no death is counted.

        Those that must run alone go on alone. What this worker does not understand goes with them.
        """
        self._acks.return_to_queue(entries)
        self.return_unsupported()

    def return_unsupported(self) -> None:
        """Give what this worker does not understand to the others, once a second: what is still wanted may come again at once.

        Raises RedisAway.
        """
        set_aside, self._set_aside = self._set_aside, []
        try:
            self._acks.return_now(set_aside)
        except RedisAway:
            self._set_aside += set_aside
            raise

    def _drop_completion(self, held: QueueEntry, why: bytes) -> Completion:
        """The end of an entry that must not run, as a script says. Without a word where its gateway sends it again, or it has ended."""
        late = self._acks.failed(held.job_id, "deadline", "the deadline passed") if why == b"deadline" else None
        return Completion(held, late, skip_statistics=why in (b"payload", b"gateway", b"ended"))

    def _pull(self, capacity: Capacity) -> list[TakenRow]:
        args = Pull(self._id, self._link.absence_counts, capacity.message)
        now_ms, rows, left = self._claiming(lambda: self._link.run(PULL, args))
        self._link.set_clock(now_ms)
        self.backlog = {stream.decode(): (count, since_ms) for stream, count, since_ms in left}
        return rows

    def _wait(self, capacity: Capacity, block_ms: int) -> list[QueueEntry]:
        """Block until a job comes. Most likely it is fresh; what is not is looked at right before its batch."""
        rows = self._read(capacity.pool_of, ">", "COUNT", capacity.smallest, "BLOCK", block_ms)
        self.backlog = {} if len(rows) < capacity.smallest else None
        # COUNT holds for each stream, and several may have filled meanwhile: the least urgent wait for the next pull
        within = capacity.within(rows)
        self._may_have_pending = len(within) < len(rows)
        return self._accept(within, alone=False, checked=False)

    def _recover_pending(self, capacity: Capacity) -> list[QueueEntry]:
        """Jobs that are pending under our name but not in our hands: most likely Redis gave them in an answer that never arrived.

        What was claimed in that answer is marked as running alone, which it does not: it is given back, to be claimed once more.
        """
        held = self._acks.held.copy()
        rows = [row for row in self._read(capacity.pool_of, "0") if (row.stream.decode(), row.entry.decode()) not in held]
        within = capacity.within(rows)
        marks = [self._link.command("EXISTS", self._link.name(keys.deaths(row.job.decode(errors="replace")))) for row in within]
        self._may_have_pending = len(within) < len(rows)
        self._acks.return_later(self._accept([row for row, mark in zip(within, marks, strict=True) if mark], alone=True))
        return self._accept([row for row, mark in zip(within, marks, strict=True) if not mark], alone=False, checked=False)

    def _read(self, streams: Collection[str], after: str, *options: str | int) -> list[TakenRow]:
        streams_after = (*map(self._link.name, streams), *[after] * len(streams))
        command = ("XREADGROUP", "GROUP", keys.GROUP, self._id, *options, "STREAMS", *streams_after)

        def read() -> Any:
            for _ in range(MAX_READ_ATTEMPTS):
                try:
                    return self._link.command(*command)
                except redis.exceptions.ResponseError as error:
                    if not str(error).startswith("NOGROUP"):
                        raise
                # a new bundle, a Redis that restarted empty, or a janitor who took this worker for dead
                self._link.run(CREATE_GROUPS, list(streams))
            return None

        answer, prefix = self._claiming(read), len(self._link.name("").encode())
        return [
            _parse_entry(stream[prefix:], entry_id, dict(zip(flat[::2], flat[1::2], strict=True)))
            for stream, entries in answer or []
            for entry_id, flat in entries
            if flat  # deleted by hand while it was pending
        ]

    def _accept(self, rows: Sequence[TakenRow], *, alone: bool, checked: bool = True) -> list[QueueEntry]:
        """Deliveries from the scripts' rows; what must not or cannot run is ended. `checked`: a script has looked whether it may run."""
        pulled_at = time.monotonic()
        taken: list[QueueEntry] = []
        completions = []
        for row in rows:
            queued_at = min(pulled_at, self._link.monotonic(row.added_ms))
            times = (queued_at, pulled_at, pulled_at if checked else queued_at)
            stream, entry_id = row.stream.decode(), row.entry.decode()
            try:
                entry = QueueEntry(row.job.decode(), row.gateway.decode(), stream, entry_id, alone, row.added_ms, row.nbytes, *times)
            except UnicodeDecodeError:  # no gateway wrote this
                completions.append(
                    Completion(QueueEntry("", "", stream, entry_id, alone, row.added_ms, row.nbytes, *times), None, skip_statistics=True)
                )
                continue
            if row.dropped:
                completions.append(self._drop_completion(entry, row.dropped))
                continue
            job = self._decode(entry.job_id, row.message) if row.message else None
            if isinstance(job, Reply):
                completions.append(Completion(entry, job))
                continue
            self._acks.held.add((stream, entry_id))
            held = entry if job is None else self._supported_or_set_aside(Delivery.of(entry, job))
            if held is not None:
                taken.append(held)
        self._end(completions)
        return taken

    def _decode(self, job_id: str, message: bytes) -> QueuedJob | Reply:
        """The job, or the answer to one that this version cannot read."""
        try:
            return decode(QueuedJob, message)
        except (UnknownVersion, msgspec.MsgspecError) as error:
            return self._acks.failed(job_id, "unknown-version", f"worker {self._id} cannot read the job: {error}")

    def _supported_or_set_aside(self, delivery: Delivery) -> Delivery | None:
        """None: the job is set aside. During a rolling update another worker understands it."""
        unknown = set(delivery.job.needs.split()) - self._forms
        if not unknown:
            return delivery
        self._set_aside.append(delivery)
        if not unknown <= self._warned_forms:
            self._warned_forms |= unknown
            log.warning("jobs need %s, which only a newer worker understands: they are handed back", ", ".join(sorted(unknown)))
        return None

    def _end(self, completions: Sequence[Completion]) -> None:
        """Those who do not run must not cost the others their turn: what cannot be ended now is found and ended later."""
        try:
            self._acks.end(completions)
        except RedisAway:
            self._acks.drop_from_held(completions)
            self._may_have_pending = True

    def _claiming(self, call: Callable[[], T]) -> T:
        """A call that moves jobs into our hands: if its answer is lost, we look for them later."""
        try:
            return call()
        except RedisAway:
            self._may_have_pending = True
            raise


def _parse_entry(stream: bytes, entry_id: bytes, fields: dict[bytes, bytes]) -> TakenRow:
    added_ms = parse_whole_number(fields.get(b"at", b"")) or int(entry_id.partition(b"-")[0])
    job, gateway, nbytes, message = (fields.get(name, b"") for name in (b"id", b"gw", b"bytes", b"job"))
    return TakenRow(stream, entry_id, job, gateway, parse_whole_number(nbytes), added_ms, b"", message)


@lru_cache(maxsize=4096)
def _capacity(queues: tuple[str, ...], shared: int, own: tuple[tuple[str, int], ...]) -> Capacity:
    """One pool of `shared` places for all queues but those that have their `own`.

    Kept: a worker pulls with the same few capacities again and again, hundreds of times a second."""
    places, pool_of, pool_of_queue = [shared], dict[str, int](), dict[str, int]()
    for queue, own_places in own:
        pool_of_queue[queue] = len(places)
        places.append(own_places)
    for queue in queues:
        index = pool_of_queue.get(queue, 0)
        if places[index] > 0:
            pool_of.update(dict.fromkeys(keys.streams(queue), index))
    return Capacity(tuple(places), pool_of)


def handicap_ms(stream: str) -> int:
    return int(HANDICAP_S[keys.StreamName.of(stream).priority] * 1000)
