"""How a worker takes jobs: by urgency, waiting where there are none, from the dead, and what an answer that never arrived had brought."""

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
from server.queue.script_rows import TakenRow, whole
from server.queue.worker import large_values
from server.queue.worker.completions import Ending, Endings
from server.queue.worker.connection import MAX_BLOCK_S, Link
from server.queue.worker.delivery import Delivery, QueueEntry

T = TypeVar("T")

log = logging.getLogger(__name__)

DEATHS_ALLOWED = 3
READS = 2
"""A look reads streams whose groups may be missing so often."""


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
    def message(self) -> bytes:
        """As `pull.lua` reads it; Lua counts from 1."""
        streams = [(stream, handicap_ms(stream), index + 1) for stream, index in self.pool_of.items()]
        return msgspec.msgpack.encode((streams, self.places))

    def within(self, rows: Sequence[TakenRow]) -> list[TakenRow]:
        """The most urgent for which there is place."""
        left, chosen = list(self.places), []
        for row in sorted(rows, key=lambda row: row.added_ms + handicap_ms(row.stream.decode())):
            index = self.pool_of[row.stream.decode()]
            if left[index] > 0:
                left[index] -= 1
                chosen.append(row)
        return chosen


class Intake:
    def __init__(self, link: Link, worker_id: str, endings: Endings, forms: frozenset[str]) -> None:
        """forms: what this worker understands of what jobs may need."""
        self._link = link
        self._id = worker_id
        self._endings = endings
        self._forms = forms
        self._told: set[str] = set()
        """Forms that jobs needed and that this worker does not understand, as far as the log knows."""
        self._set_aside: list[Delivery] = []
        """Such jobs."""
        self._overlooked = False
        """Whether more may be pending under this worker's name than what it holds."""
        self.left: Mapping[str, tuple[int, int]] | None = None
        """Work stream → how many jobs still waited there after the last look, and when the next of them was queued, in ms on Redis' clock
        (0: before that was set back). None: unknown. Where nothing waited, the next look may wait at once."""
        self.redis_is_full = True
        """Whether Redis may refuse a plain command that needs memory, or has not been asked yet. Steps run even then."""

    def take(self, queues: Sequence[str], max_items: int, block_ms: int = 0, own: Mapping[str, int] | None = None) -> list[QueueEntry]:
        """At most `max_items` jobs of these queues (`keys.queue`), the most urgent first. own: queues with places of their own instead.

        If there is none, or no place for one, it waits up to `block_ms` (≤ 2000). `fetch` reads large messages: an entry becomes a
        `Delivery`.
        What is too late, cancelled, unreadable or of a dead gateway is ended here and not returned; what needs more than this worker
        understands is not returned either, and goes back to the others (`hand_back_set_aside`).
        """
        capacity = _capacity(tuple(queues), max_items, tuple((own or {}).items()))
        if not capacity.pool_of:
            time.sleep(block_ms / 1000)
            return []
        self._endings.hand_back_given_up()
        if self._overlooked and (found := self._find_overlooked(capacity)):
            return found
        if block_ms <= 0 or self.left is None or self.left:
            rows = self._look(capacity)
            if rows or block_ms <= 0:
                return self._accept(rows, alone=False)
        return self._wait(capacity, min(block_ms, int(MAX_BLOCK_S * 1000)))

    def fetch(self, held: QueueEntry) -> Delivery | None:
        """Read a large message, in pieces. None: there is nothing to run; the job is ended. RedisAway: it is handed back later."""
        with self._endings.given_up_while_away([held]):
            message = self._link.patiently(lambda: large_values.read(self._link, keys.blob(held.job_id)))
        # of another length, it was lost, or the job ended meanwhile
        job = self._decode(held.job_id, message) if len(message) == held.nbytes else None
        if isinstance(job, QueuedJob):
            return self._understood(Delivery.of(held, job))
        self._end([Ending(held, job, silent=job is None)])
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
            answer = self._taking(lambda: self._link.script("reclaim", self._id, *streams))
            self._link.set_clock(answer[0])
            if len(answer) == 1:
                return None
            _, row, deaths, dead_worker = answer
            for held in self._accept([TakenRow._make(row)], alone=True):
                delivery = held if isinstance(held, Delivery) else self.fetch(held)
                if delivery is not None and deaths < DEATHS_ALLOWED:
                    return delivery
                if delivery is not None:
                    reason = f"{deaths} workers died while they ran this job alone, the last one was {dead_worker.decode()}"
                    self._endings.dead_letter(delivery, reason)

    def begin_soon(self, deliveries: Sequence[Delivery], slot: int, *, checked: bool = False) -> Callable[[], list[Delivery]]:
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
        looked_at = (word for held in deliveries for word in (held.job.id, held.job.deadline_ms, held.gateway))
        sent_at = time.monotonic()
        answer = self._link.send_script("begin_step", self._id, slot, running, int(self._link.absence_counts), *looked_at)

        def wanted() -> list[Delivery]:
            now_ms, *dropped = answer()
            self._link.set_clock(now_ms, sent_at)
            self._end([self._unwanted(held, why) for held, why in zip(deliveries, dropped, strict=True) if why])
            return [held for held, why in zip(deliveries, dropped, strict=True) if not why]

        return wanted

    def hand_back_set_aside(self) -> None:
        """Give what this worker does not understand to the others, once a second: what is still wanted may come again at once.

        Raises RedisAway.
        """
        set_aside, self._set_aside = self._set_aside, []
        try:
            self._endings.hand_back_at_once(set_aside)
        except RedisAway:
            self._set_aside += set_aside
            raise

    def _unwanted(self, held: QueueEntry, why: bytes) -> Ending:
        """The end of an entry that must not run, as a script says. Without a word where its gateway sends it again, or it has ended."""
        late = self._endings.failed(held.job_id, "deadline", "the deadline passed") if why == b"deadline" else None
        return Ending(held, late, silent=why in (b"payload", b"gateway", b"ended"))

    def _look(self, capacity: Capacity) -> list[TakenRow]:
        arguments = (self._id, int(self._link.absence_counts), capacity.message)
        now_ms, rows, left = self._taking(lambda: self._link.script("pull", *arguments))
        self._link.set_clock(now_ms)
        self.left = {stream.decode(): (count, since_ms) for stream, count, since_ms in left}
        return [TakenRow._make(row) for row in rows]

    def _wait(self, capacity: Capacity, block_ms: int) -> list[QueueEntry]:
        """Block until a job comes. Most likely it is fresh; what is not is looked at right before its batch."""
        rows = self._read(capacity.pool_of, ">", "COUNT", capacity.smallest, "BLOCK", block_ms)
        self.left = {} if len(rows) < capacity.smallest else None
        # COUNT holds for each stream, and several may have filled meanwhile: the least urgent wait for the next pull
        within = capacity.within(rows)
        self._overlooked = len(within) < len(rows)
        return self._accept(within, alone=False, checked=False)

    def _find_overlooked(self, capacity: Capacity) -> list[QueueEntry]:
        """Jobs that are pending under our name but not in our hands: most likely Redis gave them in an answer that never arrived.

        What was claimed in that answer is marked as running alone, which it does not: it is given back, to be claimed once more.
        """
        held = self._endings.held.copy()
        rows = [row for row in self._read(capacity.pool_of, "0") if (row.stream.decode(), row.entry.decode()) not in held]
        within = capacity.within(rows)
        marks = [self._link.command("EXISTS", self._link.name(keys.deaths(row.job.decode(errors="replace")))) for row in within]
        self._overlooked = len(within) < len(rows)
        self._endings.give_up(self._accept([row for row, mark in zip(within, marks, strict=True) if mark], alone=True))
        return self._accept([row for row, mark in zip(within, marks, strict=True) if not mark], alone=False, checked=False)

    def _read(self, streams: Collection[str], after: str, *options: str | int) -> list[TakenRow]:
        streams_after = (*map(self._link.name, streams), *[after] * len(streams))
        command = ("XREADGROUP", "GROUP", keys.GROUP, self._id, *options, "STREAMS", *streams_after)

        def read() -> Any:
            for _ in range(READS):
                try:
                    return self._link.command(*command)
                except redis.exceptions.ResponseError as error:
                    if not str(error).startswith("NOGROUP"):
                        raise
                # a new bundle, a Redis that restarted empty, or a janitor who took this worker for dead
                self._link.script("create_groups", *streams)
            return None

        answer, prefix = self._taking(read), len(self._link.name("").encode())
        return [
            _taken(stream[prefix:], entry_id, dict(zip(flat[::2], flat[1::2], strict=True)))
            for stream, entries in answer or []
            for entry_id, flat in entries
            if flat  # deleted by hand while it was pending
        ]

    def _accept(self, rows: Sequence[TakenRow], *, alone: bool, checked: bool = True) -> list[QueueEntry]:
        """Deliveries from the scripts' rows; what must not or cannot run is ended. `checked`: a script has looked whether it may run."""
        pulled_at = time.monotonic()
        taken: list[QueueEntry] = []
        endings = []
        for row in rows:
            queued_at = min(pulled_at, self._link.monotonic(row.added_ms))
            times = (queued_at, pulled_at, pulled_at if checked else queued_at)
            stream, entry_id = row.stream.decode(), row.entry.decode()
            try:
                entry = QueueEntry(row.job.decode(), row.gateway.decode(), stream, entry_id, alone, row.added_ms, row.nbytes, *times)
            except UnicodeDecodeError:  # no gateway wrote this
                endings.append(Ending(QueueEntry("", "", stream, entry_id, alone, row.added_ms, row.nbytes, *times), None, silent=True))
                continue
            if row.dropped:
                endings.append(self._unwanted(entry, row.dropped))
                continue
            job = self._decode(entry.job_id, row.message) if row.message else None
            if isinstance(job, Reply):
                endings.append(Ending(entry, job))
                continue
            self._endings.held.add((stream, entry_id))
            held = entry if job is None else self._understood(Delivery.of(entry, job))
            if held is not None:
                taken.append(held)
        self._end(endings)
        return taken

    def _decode(self, job_id: str, message: bytes) -> QueuedJob | Reply:
        """The job, or the answer to one that this version cannot read."""
        try:
            return decode(QueuedJob, message)
        except (UnknownVersion, msgspec.MsgspecError) as error:
            return self._endings.failed(job_id, "unknown-version", f"worker {self._id} cannot read the job: {error}")

    def _understood(self, delivery: Delivery) -> Delivery | None:
        """None: the job is set aside. During a rolling update another worker understands it."""
        unknown = set(delivery.job.needs.split()) - self._forms
        if not unknown:
            return delivery
        self._set_aside.append(delivery)
        if not unknown <= self._told:
            self._told |= unknown
            log.warning("jobs need %s, which only a newer worker understands: they are handed back", ", ".join(sorted(unknown)))
        return None

    def _end(self, endings: Sequence[Ending]) -> None:
        """Those who do not run must not cost the others their turn: what cannot be ended now is found and ended later."""
        try:
            self._endings.end(endings)
        except RedisAway:
            self._endings.lose(endings)
            self._overlooked = True

    def _taking(self, call: Callable[[], T]) -> T:
        """A call that moves jobs into our hands: if its answer is lost, we look for them later."""
        try:
            return call()
        except RedisAway:
            self._overlooked = True
            raise


def _taken(stream: bytes, entry_id: bytes, fields: dict[bytes, bytes]) -> TakenRow:
    added_ms = whole(fields.get(b"at", b"")) or int(entry_id.partition(b"-")[0])
    job, gateway, nbytes, message = (fields.get(name, b"") for name in (b"id", b"gw", b"bytes", b"job"))
    return TakenRow(stream, entry_id, job, gateway, whole(nbytes), added_ms, b"", message)


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
