"""How a worker takes jobs: by urgency, waiting where there are none, from the dead, and what an answer that never arrived had brought."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
import redis

from server.queue import keys
from server.queue.delivery import Delivery, Ending
from server.queue.errors import RedisAway
from server.queue.job import HANDICAP_S, UnknownVersion, decode_job
from server.queue.link import MAX_BLOCK_S, Link
from server.queue.outcomes import Outcomes
from server.queue.rows import Taken, whole

T = TypeVar("T")

DEATHS_ALLOWED = 3


class Intake:
    def __init__(self, link: Link, worker_id: str, outcomes: Outcomes) -> None:
        self._link = link
        self._id = worker_id
        self._outcomes = outcomes
        self._overlooked = False
        """Whether more may be pending under this worker's name than what it holds."""
        self._emptied = False
        """Whether the last look took all there was: then the next one may wait at once."""

    def pull(self, queues: Sequence[str], max_items: int, block_ms: int) -> list[Delivery]:
        if max_items <= 0 or not queues:
            return []
        streams = _streams(tuple(queues))
        self._outcomes.hand_back_given_up()
        if self._overlooked and (found := self._find_overlooked(streams, max_items)):
            return found
        if block_ms <= 0 or not self._emptied:
            rows = self._look(streams, max_items)
            if rows or block_ms <= 0:
                return self._accept(rows, alone=False)
        return self._wait(streams, max_items, min(block_ms, int(MAX_BLOCK_S * 1000)))

    def has_orphans(self, queues: Sequence[str]) -> bool:
        return self._link.absence_counts and bool(self._link.script("orphans", self._id, keys=_streams(tuple(queues))))

    def reclaim(self, queues: Sequence[str]) -> Delivery | None:
        if not self._link.absence_counts:
            return None
        streams = _streams(tuple(queues))
        while True:
            answer = self._taking(lambda: self._link.script("reclaim", self._id, "1", keys=streams))
            self._link.set_clock(answer[0])
            if len(answer) == 1:
                return None
            _, row, deaths, dead_worker = answer
            deliveries = self._accept([Taken._make(row)], alone=True)
            if not deliveries:
                continue
            if deaths < DEATHS_ALLOWED:
                return deliveries[0]
            reason = f"{deaths} workers died while they ran this job alone, the last one was {dead_worker.decode()}"
            self._outcomes.dead_letter(deliveries[0], reason, "worker-crashed")

    def still_wanted(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        if not deliveries:
            return []
        gateways = sorted({delivery.job.gateway for delivery in deliveries if not delivery.job.record})
        names = [keys.cancel(delivery.job.id) for delivery in deliveries] + [keys.gateway(gateway) for gateway in gateways]
        marks = self._link.command("MGET", *names)
        absent = {gateway for gateway, mark in zip(gateways, marks[len(deliveries) :], strict=True) if mark is None}
        dead = absent if self._link.absence_counts else set()
        now_ms = self._link.now_ms()
        wanted, endings = [], []
        for delivery, mark in zip(deliveries, marks[: len(deliveries)], strict=True):
            if delivery.job.gateway in dead:
                endings.append(Ending.of(delivery, None, silent=True))
            elif mark is not None:
                endings.append(Ending.of(delivery, None))
            elif now_ms is not None and delivery.job.deadline_ms <= now_ms:
                late = self._outcomes.failed(delivery.job.id, "deadline", "the deadline passed in the queue")
                endings.append(Ending.of(delivery, late))
            else:
                wanted.append(delivery)
        self._end(endings)
        return wanted

    def _look(self, streams: list[str], max_items: int) -> list[Taken]:
        arguments = (self._id, max_items, int(self._link.absence_counts), *map(_handicap_ms, streams))
        now_ms, rows = self._taking(lambda: self._link.script("pull", *arguments, keys=streams))
        self._link.set_clock(now_ms)
        self._emptied = len(rows) < max_items
        return [Taken._make(row) for row in rows]

    def _wait(self, streams: list[str], max_items: int, block_ms: int) -> list[Delivery]:
        """Block until a job comes. Most likely it is fresh; what is not is looked at right before its batch."""
        rows = self._read(streams, ">", "COUNT", max_items, "BLOCK", block_ms)
        self._emptied = len(rows) < max_items
        # COUNT holds for each stream, and several may have filled meanwhile: the least urgent wait for the next pull
        self._overlooked = len(rows) > max_items
        rows = sorted(rows, key=_due)[:max_items] if self._overlooked else rows
        return self._accept(self._with_blobs(rows), alone=False, checked=False)

    def _find_overlooked(self, streams: list[str], max_items: int) -> list[Delivery]:
        """Jobs that are pending under our name but not in our hands: most likely Redis gave them in an answer that never arrived.

        What was claimed in that answer is marked as running alone, which it does not: it is given back, to be claimed once more.
        """
        held = self._outcomes.held
        rows = [row for row in self._read(streams, "0") if (row.stream.decode(), row.entry.decode()) not in held]
        self._overlooked = len(rows) > max_items
        rows = rows[:max_items]
        marks = [self._link.command("EXISTS", b"deaths:" + row.job) for row in rows]
        suspects = self._accept([row for row, mark in zip(rows, marks, strict=True) if mark], alone=True)
        self._outcomes.hand_back(suspects)
        return self._accept(self._with_blobs([row for row, mark in zip(rows, marks, strict=True) if not mark]), alone=False, checked=False)

    def _read(self, streams: list[str], after: str, *options: str | int) -> list[Taken]:
        command = ["XREADGROUP", "GROUP", keys.GROUP, self._id, *options, "STREAMS", *streams, *[after] * len(streams)]

        def read() -> Any:
            try:
                return self._link.command(*command)
            except redis.exceptions.ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
            # a new bundle, or a Redis that restarted empty
            self._link.script("create_groups", keys=streams)
            return self._link.command(*command)

        answer = self._taking(read)
        return [
            _taken(stream, entry_id, dict(zip(flat[::2], flat[1::2], strict=True)))
            for stream, entries in answer or []
            for entry_id, flat in entries
            if flat  # deleted by hand while it was pending
        ]

    def _with_blobs(self, rows: list[Taken]) -> list[Taken]:
        large = [row for row in rows if not row.message]
        if not large:
            return rows
        blobs = self._taking(lambda: self._link.command("MGET", *(b"blob:" + row.job for row in large)))
        found = {row.entry: blob for row, blob in zip(large, blobs, strict=True)}
        return [row if row.message else _with_blob(row, found[row.entry]) for row in rows]

    def _accept(self, rows: Sequence[Taken], *, alone: bool, checked: bool = True) -> list[Delivery]:
        """Deliveries from the scripts' rows; what must not or cannot run is ended. `checked`: a script has looked whether it may run."""
        pulled_at = time.monotonic()
        deliveries, endings = [], []
        for row in rows:
            stream, entry_id = row.stream.decode(), row.entry.decode()
            try:
                id_, gateway = row.job.decode(), row.gateway.decode()
            except UnicodeDecodeError:  # no gateway wrote this
                endings.append(Ending(stream, entry_id, "", "", row.nbytes, row.added_ms, None, silent=True))
                continue
            reply = None
            if not row.dropped:
                try:
                    job = decode_job(row.message)
                except (UnknownVersion, msgspec.MsgspecError) as error:
                    reply = self._outcomes.failed(id_, "unknown-version", f"worker {self._id} cannot read the job: {error}")
                else:
                    queued_at = min(pulled_at, self._link.monotonic(row.added_ms))
                    checked_at = pulled_at if checked else queued_at
                    deliveries.append(Delivery(job, stream, entry_id, alone, row.added_ms, queued_at, pulled_at, checked_at, row.nbytes))
                    self._outcomes.hold(stream, entry_id)
                    continue
            elif row.dropped == b"deadline":
                reply = self._outcomes.failed(id_, "deadline", "the deadline passed in the queue")
            silent = row.dropped in (b"payload", b"gateway")
            endings.append(Ending(stream, entry_id, id_, gateway, row.nbytes, row.added_ms, reply, silent=silent))
        self._end(endings)
        return deliveries

    def _end(self, endings: Sequence[Ending]) -> None:
        """Those who do not run must not cost the others their turn: what cannot be ended now is found and ended later."""
        try:
            self._outcomes.end(endings)
        except RedisAway:
            self._overlooked = True

    def _taking(self, call: Callable[[], T]) -> T:
        """A call that moves jobs into our hands: if its answer is lost, we look for them later."""
        try:
            return call()
        except RedisAway:
            self._overlooked = True
            raise


@lru_cache(maxsize=64)
def _streams(queues: tuple[str, ...]) -> list[str]:
    return [stream for queue in queues for stream in keys.streams(queue)]


@lru_cache(maxsize=1024)
def _handicap_ms(stream: str) -> int:
    return int(HANDICAP_S[keys.StreamName.of(stream).priority] * 1000)


def _due(row: Taken) -> int:
    return row.added_ms + _handicap_ms(row.stream.decode())


def _taken(stream: bytes, entry_id: bytes, fields: dict[bytes, bytes]) -> Taken:
    added_ms = whole(fields.get(b"at", b"")) or int(entry_id.partition(b"-")[0])
    return Taken(
        stream=stream,
        entry=entry_id,
        job=fields.get(b"id", b""),
        gateway=fields.get(b"gw", b""),
        nbytes=whole(fields.get(b"bytes", b"")),
        added_ms=added_ms,
        dropped=b"",
        message=fields.get(b"job", b""),
    )


def _with_blob(row: Taken, blob: bytes | None) -> Taken:
    return row._replace(message=blob) if blob else row._replace(dropped=b"payload")
