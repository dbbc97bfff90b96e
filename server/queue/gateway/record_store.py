"""Clients' jobs that outlive their gateway: a gateway admits them here, and any gateway reads, follows and ends them."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import cast

import msgspec

from server.arrays import Array
from server.queue import keys
from server.queue.connect import ANSWER_TIMEOUT_S, away_is_one_error
from server.queue.errors import DeadlineExceeded, KeyTaken, RecordLost, RedisAway, Refused
from server.queue.gateway.connection import AsyncLink
from server.queue.gateway.large_values import Freight
from server.queue.gateway.reservations import Reservations
from server.queue.gateway.submitter import LATE, Submitter, to_rows
from server.queue.messages import QueuedJob, Reply, decode
from server.queue.record import NAMES, Draft, Happened, Record, RecordEvent, State, epoch_of
from server.queue.script import Script
from server.queue.script_rows import Outcome, Recorded
from server.settings import Settings


class RecordAdmitted(msgspec.Struct, frozen=True, array_like=True):
    status: bytes
    """`ok`; `known`: the same request came before under this key; `conflict`: another one did; `refused`; `late`; `unstaged`; `epoch`: this
    Redis is another one than the gateway thinks."""
    id: bytes
    """Of the record; with `epoch`, that of this Redis."""
    now_ms: int
    place: int = -1
    """In the record's stream, where there is a record; -1: unknown."""
    values: list[bytes | None] = []
    """Its fields that were named."""
    outcome: Outcome = Outcome()
    """Why it was refused."""


ENQUEUE_RECORD = Script("enqueue_record", Recorded, RecordAdmitted)
READ_RECORD = Script("read_record", tuple[str, Sequence[str]], tuple[bytes, int, list[bytes | None]])
CANCEL_RECORD = Script("cancel_record", tuple[str, str], tuple[bytes, int])
Entries = list[tuple[bytes, list[bytes]]]
READ_EVENTS = Script("read_events", tuple[int, Sequence[tuple[str, int]]], tuple[bytes, list[tuple[bytes, Entries]]])
SWEEP_RECORDS = Script("sweep_records", tuple[()], bytes)
EVENTS_PER_READ = 64
"""A call reads at most so many of one record."""
NOT_YET_S = 0.002
"""Until a command that was just sent waits in Redis."""


class Records:
    """For one event loop. Everything but `admit` raises RedisAway at once while Redis does not answer."""

    def __init__(self, link: AsyncLink, freight: Freight, settings: Settings, submitter: Submitter, reservations: Reservations) -> None:
        self._link = link
        self._listener_id = 0
        """The number of its connection, as Redis counts."""
        self._listening = False
        self._freight = freight
        self._settings = settings
        self._submitter = submitter
        self._reservations = reservations
        self.epoch = ""
        """The epoch of the Redis that answered last; empty before the first beat."""

    async def admit(self, draft: Draft, plan: bytes, make_jobs: Callable[[str], list[QueuedJob]], *, max_items: int = 0) -> Record:
        """Queue a client's job; returns its record, which is an older one where the same request came before under its key.

        `plan`: msgpack of the task's plan. `make_jobs` makes the jobs of the queue for a record. max_items: as of
        `Submitter.enqueue`. Raises Refused, KeyTaken, DeadlineExceeded or RedisAway (away for longer than `redis_grace`).
        """
        record, jobs, since, until = "", list[QueuedJob](), time.monotonic(), 0.0
        while True:
            await self._link.wait()
            if epoch_of(record) != self.epoch:
                record = f"{self.epoch}-{secrets.token_hex(16)}"
                jobs = make_jobs(record)
                until = until or time.monotonic() + (jobs[0].deadline_ms - self._link.now_ms()) / 1000
            try:
                admitted = await self._link.undisturbed(self._try_to_admit(record, draft, plan, jobs, max_items))
            except RedisAway as away:
                if (why := await self._submitter.given_up(away, since)) is not None:
                    raise why from away.__cause__
                continue
            match admitted.status:
                case b"ok" | b"known":
                    return _record(admitted.id.decode(), admitted.place, admitted.values)
                case b"epoch":
                    self.epoch = admitted.id.decode()
                case b"conflict":
                    raise KeyTaken
                case b"refused":
                    raise Refused(admitted.outcome)
                case b"late":  # or Redis' clock was set
                    if time.monotonic() > until:
                        raise DeadlineExceeded(LATE)
                    self._link.set_clock(admitted.now_ms)
                    jobs = [self._link.until(job, until) for job in jobs]

    async def read(self, record_id: str) -> Record | None:
        """None: unknown, or expired. Raises RecordLost."""
        if not epoch_of(record_id):
            return None
        epoch, place, values = await self._link.run(READ_RECORD, (record_id, NAMES))
        if not values:
            self._check_epoch(record_id, epoch)
            return None
        return _record(record_id, place, values)

    async def plan(self, record_id: str) -> bytes | None:
        """The msgpack of its task's plan. None: it has expired."""
        plan: bytes | None = await self._link.command("HGET", self._link.name(keys.record(record_id)), "plan")
        return plan

    async def cancel(self, record_id: str, key_name: str = "") -> bool:
        """End a job, or remove what is left of one that has ended. False: there is none of the API key of this name; empty: of none.
        Raises RecordLost."""
        if not epoch_of(record_id):
            return False
        epoch, found = await self._link.run(CANCEL_RECORD, (record_id, key_name))
        if not found:
            self._check_epoch(record_id, epoch)
        return bool(found)

    async def events(self, positions: Sequence[tuple[str, int]]) -> list[Happened | RecordLost]:
        """(record, number of the last event that is known) → what came after it, at most EVENTS_PER_READ at a time.

        Where that is much, the last of them are left for the next call."""
        epoch, answers = await self._link.run(READ_EVENTS, (EVENTS_PER_READ, positions))
        happened: list[Happened | RecordLost] = []
        for (record_id, _), (state, entries) in zip(positions, answers, strict=False):
            is_lost = not state and epoch_of(record_id) != epoch.decode()
            happened.append(RecordLost() if is_lost else Happened(cast(State, state.decode()) if state else None, _events(entries)))
        return happened

    async def listen(self, known: Mapping[str, int], seconds: float) -> dict[str, list[RecordEvent]]:
        """Record → what came after the event that is known, as soon as that is something; empty after so many seconds or a `wake`.

        For one caller at a time, who must not be cancelled."""
        names = {self._link.name(keys.events(record)): record for record in known}
        command = ("XREAD", "COUNT", EVENTS_PER_READ, "BLOCK", math.ceil(1000 * seconds), "STREAMS")
        self._listening = True
        try:
            with away_is_one_error():
                self._listener_id = await self._link.listener.command("CLIENT", "ID")  # it may be another connection now
                after = [f"{number}-0" for number in known.values()]
                answer = await self._link.listener.command(*command, *names, *after, patience=seconds + ANSWER_TIMEOUT_S)
        finally:
            self._listening = False
        return {names[stream.decode()]: _events(entries) for stream, entries in answer or ()}

    async def wake(self) -> None:
        """Whoever listens returns."""
        with suppress(RedisAway):
            while self._listening and not await self._link.command("CLIENT", "UNBLOCK", self._listener_id):
                await asyncio.sleep(NOT_YET_S)

    async def replies(self, record: Record) -> list[Reply] | None:
        """Return what its jobs were answered, in their order, arrays included; None if it is there no more."""
        replies = []
        for job_id in record.job_ids:
            reply = await self._link.undisturbed(self._reply(job_id))
            if reply is None:
                return None
            replies.append(reply)
        return replies

    async def sweep(self) -> None:
        """End those whose deadline has passed, and queue again what Redis has lost."""
        with suppress(RedisAway):  # the next beat sees to it
            await self._link.run(SWEEP_RECORDS, ())

    async def _try_to_admit(self, record: str, draft: Draft, plan: bytes, jobs: list[QueuedJob], max_items: int) -> RecordAdmitted:
        claim, rows, messages, staged = to_rows(jobs, max_items, kept=True)
        for key, message in staged.items():
            await self._freight.write(key, message)
        recorded = Recorded(
            bounds=self._reservations.bounds,
            record=record,
            draft=draft,
            ttl_ms=int(self._settings.result_ttl * 1000),
            jobs=rows,
            claim=claim,
            names=NAMES,
        )
        return await self._link.move(ENQUEUE_RECORD, recorded, [plan, *messages])

    async def _reply(self, job_id: str) -> Reply | None:
        message = await self._freight.read(keys.result(job_id))
        if not message:
            return None
        try:
            reply = decode(Reply, message)
        except msgspec.MsgspecError as error:
            raise RedisAway.unreadable(keys.result(job_id), error) from error
        if not reply.stored:
            return reply
        stored = await self._freight.read(keys.result_arrays(job_id))
        try:
            return msgspec.structs.replace(reply, arrays=msgspec.msgpack.decode(stored, type=dict[str, Array]), stored="")
        except msgspec.MsgspecError:  # it expired, or was removed, between two pieces
            return None

    @staticmethod
    def _check_epoch(record_id: str, epoch: bytes) -> None:
        if epoch_of(record_id) != epoch.decode():
            raise RecordLost


def _record(record_id: str, place: int, values: Sequence[bytes | None]) -> Record:
    try:
        return Record.of(record_id, place, values)
    except (msgspec.ValidationError, UnicodeDecodeError, KeyError) as error:
        raise RedisAway.unreadable(keys.record(record_id), error) from error


def _events(entries: Sequence[tuple[bytes, Sequence[bytes]]]) -> list[RecordEvent]:
    """Leave out what no script of ours wrote."""
    found = [(int(entry.partition(b"-")[0]), dict(zip(flat[::2], flat[1::2], strict=True))) for entry, flat in entries]
    return [
        RecordEvent(number, fields[b"event"].decode(errors="replace"), fields[b"data"])
        for number, fields in found
        if {b"event", b"data"} <= fields.keys()
    ]
