"""A worker's hold of jobs: it takes the most urgent ones, waits if there are none, claims those of dead workers, and begins steps."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import attrgetter
from typing import Any, TypeVar

import msgspec
import redis

from server.queue import keys
from server.queue.connect import RedisUnavailable
from server.queue.messages import PRIORITY_DELAY_S, QueuedJob, Reply, UnknownVersion, decode
from server.queue.script import Script, TakenRow, parse_whole_number
from server.queue.worker.ack import Acks, Completion
from server.queue.worker.connection import MAX_BLOCK_S, WorkerRedisLink
from server.queue.worker.delivery import Delivery, QueueEntry

T = TypeVar("T")
_fields: attrgetter[tuple[Any, ...]] = attrgetter(*QueueEntry.__slots__)

log = logging.getLogger(__name__)


class ReclaimedJob(msgspec.Struct, frozen=True, array_like=True):
    """A job that a dead worker was running, or none."""

    now_ms: int
    row: TakenRow | None = None
    deaths: int = 0
    """Deaths of workers that ran it alone."""
    dead_worker: bytes = b""


PULL = Script("pull", tuple[str, bool, msgspec.Raw], tuple[int, list[TakenRow], list[tuple[bytes, int, int]]])
RECLAIM = Script("reclaim", tuple[str, list[str]], ReclaimedJob)
STEP = Script("begin_step", tuple[str, int, bool, list[tuple[str, int, str]]], tuple[int, list[bytes]])
CREATE_GROUPS = Script("create_groups", list[str], bytes)
MAX_WORKER_DEATHS = 3
MAX_READ_ATTEMPTS = 2
"""Maximum number of reads of streams whose groups may be missing."""


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
        """The capacity as `pull.lua` reads it; Lua counts from 1."""
        streams = [(stream, handicap_ms(stream), index + 1) for stream, index in self.pool_of.items()]
        return msgspec.Raw(msgspec.msgpack.encode((streams, self.places)))

    def within(self, rows: Sequence[TakenRow]) -> list[TakenRow]:
        """Return the most urgent for which there is place."""
        left, chosen = list(self.places), []
        for row in sorted(rows, key=lambda row: row.added_ms + handicap_ms(row.stream.decode())):
            index = self.pool_of[row.stream.decode()]
            if left[index] > 0:
                left[index] -= 1
                chosen.append(row)
        return chosen


class JobIntake:
    """Jobs that a worker takes. All but `fetch` and `return_to_queue` raise RedisUnavailable as soon as Redis does not answer."""

    def __init__(self, link: WorkerRedisLink, worker_id: str, acks: Acks, forms: frozenset[str]) -> None:
        """`forms`: what this worker understands of what jobs may need."""
        self._link = link
        self._id = worker_id
        self._acks = acks
        self._forms = forms
        self._warned_forms: set[str] = set()
        """Forms that jobs needed, that this worker does not understand, and that the log has named."""
        self._unsupported: list[Delivery] = []
        self._may_have_pending = False
        """Whether more may be pending under this worker's name than what it holds."""
        self.backlog: Mapping[str, tuple[int, int]] | None = None
        """Work stream → how many jobs still waited there after the last look, and when the next of them was queued, in ms on Redis' clock
        (0: before that was set back). None: unknown. Where nothing waited, the next look may wait at once."""
        self.redis_is_full = True
        """Whether Redis may refuse a plain command that needs memory, or that is not known yet. Steps run even then."""

    def take(self, queues: Sequence[str], max_items: int, block_ms: int = 0, separate: Mapping[str, int] | None = None) -> list[QueueEntry]:
        """Take at most `max_items` jobs of these queues (`keys.queue`), the most urgent first. `separate`: queues with places of their own.

        If there is none, or no place for one, it waits up to `block_ms` (≤ 2000). `fetch` reads large messages.
        What is too late, cancelled, unreadable or of a dead gateway is ended here and not returned; what needs more than this worker
        understands is not returned either, and goes back to the others (`return_unsupported`).
        """
        capacity = _capacity(tuple(queues), max_items, tuple((separate or {}).items()))
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

    def fetch(self, entry: QueueEntry) -> Delivery | None:
        """Read a large message, in pieces. None: there is nothing to run; the job is ended. RedisUnavailable: it is handed back later."""
        with self._acks.return_later_if_unavailable([entry]):
            message = self._link.retry(lambda: self._link.read_large(keys.blob(entry.job_id)))
        # of another length, it was lost, or the job has ended
        job = self._decode(entry.job_id, message) if len(message) == entry.nbytes else None
        if isinstance(job, QueuedJob):
            return self._supported_or_none(delivery_of(entry, job))
        self._end([Completion(entry, job, skip_statistics=job is None)])
        return None

    def reclaim(self, queues: Sequence[str]) -> Delivery | None:
        """Claim a job that a dead worker was running, to be run alone: nothing else may run in this worker during its steps. Jobs that only
        waited there return to the queue.

        Each death of a worker that ran it alone is counted; after the third the job becomes a dead letter and its client gets an error.
        """
        if not self._link.is_absence_reliable:
            return None
        streams = [stream for queue in queues for stream in keys.streams(queue)]
        while True:
            claimed = self._claiming(lambda: self._link.run(RECLAIM, (self._id, streams)))
            self._link.set_clock(claimed.now_ms)
            if claimed.row is None:
                return None
            for entry in self._accept([claimed.row], alone=True):
                delivery = entry if isinstance(entry, Delivery) else self.fetch(entry)
                if delivery is not None and claimed.deaths < MAX_WORKER_DEATHS:
                    return delivery
                if delivery is not None:
                    last = claimed.dead_worker.decode()
                    reason = f"{claimed.deaths} workers died while they ran this job alone, the last one was {last}"
                    self._acks.dead_letter(delivery, reason)

    def send_step(self, deliveries: Sequence[Delivery], slot: int, *, checked: bool = False) -> Callable[[], list[Delivery]]:
        """Record that these run in this slot, until they have ended or it begins the next batch: if this worker dies, only what is recorded
        may have killed it. The record is on its way when this returns.

        Returns a function that returns those that are still wanted: their deadline has not passed and their client waits; the others are
        ended by it. This thread calls it before anything else of this queue. checked: all of them are, as was looked at just now.
        """
        mode = "alone" if any(entry.alone for entry in deliveries) else "together"
        running = msgspec.msgpack.encode((mode, [entry.job.id for entry in deliveries]))
        if checked and not self.redis_is_full:  # a plain command costs Redis a third of a step; the beat lets its key expire
            self._link.send_without_reply("HSET", self._link.name(keys.suspects(self._id)), slot, running)
            return lambda: list(deliveries)
        jobs = [(entry.job.id, entry.job.deadline_ms, entry.gateway) for entry in deliveries]
        sent_at = time.monotonic()
        answer = self._link.send(STEP, (self._id, slot, self._link.is_absence_reliable, jobs), [running])

        def read_wanted() -> list[Delivery]:
            now_ms, dropped = answer()
            self._link.set_clock(now_ms, sent_at)
            self._end([self._drop_completion(entry, reason) for entry, reason in zip(deliveries, dropped, strict=True) if reason])
            return [entry for entry, reason in zip(deliveries, dropped, strict=True) if not reason]

        return read_wanted

    def end(self, slot: int) -> None:
        """Record that nothing runs in this slot: its jobs wait for their next step."""
        self.send_step([], slot, checked=True)()

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

        Raises RedisUnavailable.
        """
        unsupported, self._unsupported = self._unsupported, []
        try:
            self._acks.return_now(unsupported)
        except RedisUnavailable:
            self._unsupported += unsupported
            raise

    def _drop_completion(self, entry: QueueEntry, reason: bytes) -> Completion:
        """Return the end of an entry that must not run; without a reply if its gateway sends it again, or it has ended."""
        late = self._acks.make_failure(entry.job_id, "deadline", "the deadline passed") if reason == b"deadline" else None
        return Completion(entry, late, skip_statistics=reason in (b"payload", b"gateway", b"ended"))

    def _pull(self, capacity: Capacity) -> list[TakenRow]:
        args = (self._id, self._link.is_absence_reliable, capacity.message)
        now_ms, rows, left = self._claiming(lambda: self._link.run(PULL, args))
        self._link.set_clock(now_ms)
        self.backlog = {stream.decode(): (count, since_ms) for stream, count, since_ms in left}
        return rows

    def _wait(self, capacity: Capacity, block_ms: int) -> list[QueueEntry]:
        """Block until a job comes. Most likely it is fresh; what is not is looked at right before its batch."""
        rows = self._read(capacity.pool_of, ">", "COUNT", capacity.smallest, "BLOCK", block_ms)
        self.backlog = {} if len(rows) < capacity.smallest else None
        # COUNT holds for each stream, and several may have filled: the least urgent wait for the next pull
        within = capacity.within(rows)
        self._may_have_pending = len(within) < len(rows)
        return self._accept(within, alone=False, checked=False)

    def _recover_pending(self, capacity: Capacity) -> list[QueueEntry]:
        """Take jobs that are pending under our name but not in our hands: most likely Redis gave them in an answer that never arrived.

        What was claimed in that answer is marked as running alone, which it does not: it is given back, to be claimed once more.
        """
        held_entries = self._acks.held_entries.copy()
        rows = [row for row in self._read(capacity.pool_of, "0") if (row.stream.decode(), row.entry.decode()) not in held_entries]
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
        """Return what may run, as entries and deliveries; the rest is ended. `checked`: a script has looked whether it may run."""
        pulled_at = time.monotonic()
        taken: list[QueueEntry] = []
        completions = []
        for row in rows:
            queued_at = min(pulled_at, self._link.monotonic(row.added_ms))
            stream, dropped = row.stream.decode(), row.dropped
            name = keys.StreamName.parse(stream)
            try:
                job_id, gateway = row.job.decode(), row.gateway.decode()
            except UnicodeDecodeError:  # no gateway wrote this
                job_id, gateway, dropped = "", "", b"payload"
            entry = QueueEntry(
                *(job_id, gateway, stream, name.bundle, name.queue, row.entry.decode(), alone, row.added_ms, row.nbytes),
                *(queued_at, pulled_at, pulled_at if checked else queued_at),
            )
            if dropped:
                completions.append(self._drop_completion(entry, dropped))
                continue
            job = self._decode(entry.job_id, row.message) if row.message else None
            if isinstance(job, Reply):
                completions.append(Completion(entry, job))
                continue
            self._acks.held_entries.add((stream, entry.entry_id))
            accepted = entry if job is None else self._supported_or_none(delivery_of(entry, job))
            if accepted is not None:
                taken.append(accepted)
        self._end(completions)
        return taken

    def _decode(self, job_id: str, message: bytes) -> QueuedJob | Reply:
        """Return the job, or the answer to one that this version cannot read."""
        try:
            return decode(QueuedJob, message)
        except (UnknownVersion, msgspec.MsgspecError) as error:
            return self._acks.make_failure(job_id, "unknown-version", f"worker {self._id} cannot read the job: {error}")

    def _supported_or_none(self, delivery: Delivery) -> Delivery | None:
        """Return None if the job must return to the queue: during a rolling update another worker understands it."""
        unknown = set(delivery.job.needs.split()) - self._forms
        if not unknown:
            return delivery
        self._unsupported.append(delivery)
        if not unknown <= self._warned_forms:
            self._warned_forms |= unknown
            log.warning("jobs need %s, which only a newer worker understands: they are handed back", ", ".join(sorted(unknown)))
        return None

    def _end(self, completions: Sequence[Completion]) -> None:
        """End jobs that do not run. They must not delay the others: what cannot be ended now is found and ended later."""
        try:
            self._acks.end(completions)
        except RedisUnavailable:
            self._acks.drop_from_held([one.entry for one in completions])
            self._may_have_pending = True

    def _claiming(self, call: Callable[[], T]) -> T:
        """Make a call that takes jobs. If its answer is lost, they are looked for later."""
        try:
            return call()
        except RedisUnavailable:
            self._may_have_pending = True
            raise


def delivery_of(entry: QueueEntry, job: QueuedJob) -> Delivery:
    due = entry.queued_at + PRIORITY_DELAY_S[job.priority] + job.behind_ms / 1000
    return Delivery(*_fields(entry), job=job, due=due)  # type: ignore[misc]


def _parse_entry(stream: bytes, entry_id: bytes, fields: dict[bytes, bytes]) -> TakenRow:
    added_ms = parse_whole_number(fields.get(b"at", b"")) or int(entry_id.partition(b"-")[0])
    job, gateway, nbytes, message = (fields.get(name, b"") for name in (b"id", b"gw", b"bytes", b"job"))
    return TakenRow(stream, entry_id, job, gateway, parse_whole_number(nbytes), added_ms, b"", message)


@lru_cache(maxsize=4096)
def _capacity(queues: tuple[str, ...], shared: int, separate: tuple[tuple[str, int], ...]) -> Capacity:
    """Return one pool of `shared` places for all queues but the `separate` ones.

    Kept: a worker pulls with the same few capacities again and again, hundreds of times a second."""
    places, pool_of, pool_of_queue = [shared], dict[str, int](), dict[str, int]()
    for queue, own_places in separate:
        pool_of_queue[queue] = len(places)
        places.append(own_places)
    for queue in queues:
        index = pool_of_queue.get(queue, 0)
        if places[index] > 0:
            pool_of.update(dict.fromkeys(keys.streams(queue), index))
    return Capacity(tuple(places), pool_of)


def handicap_ms(stream: str) -> int:
    return int(PRIORITY_DELAY_S[keys.StreamName.parse(stream).priority] * 1000)
