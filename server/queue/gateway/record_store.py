"""Clients' jobs that outlive their gateway: a gateway admits them here, and any gateway reads, follows and ends them. Ends with a webhook
are kept as they were, whatever becomes of the jobs, until it is sent."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import msgspec

from server.queue import keys
from server.queue.connect import ANSWER_TIMEOUT_S, RedisUnavailable
from server.queue.gateway.connection import GatewayRedisLink
from server.queue.gateway.reservations import Reservations
from server.queue.gateway.submitter import DEADLINE_PASSED, Submitter, rows_of
from server.queue.messages import Array, QueuedJob, Reply, decode
from server.queue.record import NAMES, EventBatch, Record, RecordDraft, RecordEvent, State, epoch_of
from server.queue.script import DeadlineExceeded, IdempotencyConflict, Outcome, RecordAdmissionCall, RecordLost, Refused, Script
from server.settings import Settings


class RecordAdmitted(msgspec.Struct, frozen=True, array_like=True):
    status: bytes
    """`ok`; `known`: the same request came before under this key; `conflict`: another one did; `refused`; `late`; `unstaged`; `epoch`: this
    Redis is another one than the gateway thinks."""
    id: bytes
    """Id of the record; with `epoch`, that of this Redis."""
    now_ms: int
    place: int = -1
    """Place in the record's stream; -1: unknown."""
    values: list[bytes | None] = []
    """Values of its fields that were named."""
    outcome: Outcome = Outcome()
    """Why it was refused."""


ENQUEUE_RECORD = Script("enqueue_record", RecordAdmissionCall, RecordAdmitted)
READ_RECORD = Script("read_record", tuple[str, Sequence[str]], tuple[bytes, int, list[bytes | None]])
CANCEL_RECORD = Script("cancel_record", tuple[str, str], tuple[bytes, int])
Entries = list[tuple[bytes, list[bytes]]]
READ_EVENTS = Script("read_events", tuple[int, Sequence[tuple[str, int]]], tuple[bytes, list[tuple[bytes, Entries]]])
SWEEP_RECORDS = Script("sweep_records", tuple[()], bytes)
EVENTS_PER_READ = 64
"""Maximum number of events of one record that a call reads."""
NOT_YET_S = 0.002
"""Time until a command that was just sent waits in Redis."""


class RecordStore:
    """Records of one event loop. All but `admit` raise RedisUnavailable at once while Redis does not answer."""

    def __init__(self, link: GatewayRedisLink, settings: Settings, submitter: Submitter, reservations: Reservations) -> None:
        self._link = link
        self._listener_id = 0
        """Number of its connection, as Redis counts."""
        self._listening = False
        self._settings = settings
        self._submitter = submitter
        self._reservations = reservations
        self.epoch = ""
        """The epoch of the Redis that answered last; empty before the first beat."""

    async def admit(self, draft: RecordDraft, plan: bytes, make_jobs: Callable[[str], list[QueuedJob]], *, max_items: int = 0) -> Record:
        """Queue a client's job; returns its record, which is an older one where the same request came before under its key.

        `plan`: msgpack of the task's plan. `make_jobs` makes the jobs of the queue for a record. max_items: as of
        `Submitter.enqueue`. Raises Refused, IdempotencyConflict, DeadlineExceeded or RedisUnavailable (away for longer than `redis_grace`).
        """
        record, jobs, since, until = "", list[QueuedJob](), time.monotonic(), 0.0
        while True:
            await self._link.wait_available()
            if epoch_of(record) != self.epoch:
                record = f"{self.epoch}-{secrets.token_hex(16)}"
                jobs = make_jobs(record)
                until = until or time.monotonic() + (jobs[0].deadline_ms - self._link.now_ms()) / 1000
            try:
                admitted = await self._link.shield(self._try_to_admit(record, draft, plan, jobs, max_items))
            except RedisUnavailable as unavailable:
                if (final := await self._submitter.final_error(unavailable, since)) is not None:
                    raise final from unavailable.__cause__
                continue
            match admitted.status:
                case b"ok" | b"known":
                    return _record(admitted.id.decode(), admitted.place, admitted.values)
                case b"epoch":
                    self.epoch = admitted.id.decode()
                case b"conflict":
                    raise IdempotencyConflict
                case b"refused":
                    raise Refused(admitted.outcome)
                case b"late":  # or Redis' clock was set
                    if time.monotonic() > until:
                        raise DeadlineExceeded(DEADLINE_PASSED)
                    self._link.set_clock(admitted.now_ms)
                    jobs = [self._link.with_deadline(job, until) for job in jobs]

    async def read(self, record_id: str) -> Record | None:
        """Read a record; None if it is unknown, or has expired. Raises RecordLost."""
        if not epoch_of(record_id):
            return None
        epoch, place, values = await self._link.run(READ_RECORD, (record_id, NAMES))
        if not values:
            self._check_epoch(record_id, epoch)
            return None
        return _record(record_id, place, values)

    async def plan(self, record_id: str) -> bytes | None:
        """Return the msgpack of its task's plan; None if it has expired."""
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

    async def events(self, positions: Sequence[tuple[str, int]]) -> list[EventBatch | RecordLost]:
        """Return, for each (record, number of the last known event), what came after it. What is too much is left for the next call."""
        epoch, answers = await self._link.run(READ_EVENTS, (EVENTS_PER_READ, positions))
        happened: list[EventBatch | RecordLost] = []
        for (record_id, _), (state, entries) in zip(positions, answers, strict=False):
            is_lost = not state and epoch_of(record_id) != epoch.decode()
            happened.append(RecordLost() if is_lost else EventBatch(cast(State, state.decode()) if state else None, _events(entries)))
        return happened

    async def listen(self, positions: Mapping[str, int], seconds: float) -> dict[str, list[RecordEvent]]:
        """Return record → events after the known one, as soon as there are any; empty after so many seconds or a `wake`.

        For one caller at a time, who must not be cancelled."""
        names = {self._link.name(keys.events(record)): record for record in positions}
        command = ("XREAD", "COUNT", EVENTS_PER_READ, "BLOCK", math.ceil(1000 * seconds), "STREAMS")
        self._listening = True
        try:
            self._listener_id = await self._link.listener.command("CLIENT", "ID")  # it may be another connection now
            after = [f"{number}-0" for number in positions.values()]
            answer = await self._link.listener.command(*command, *names, *after, timeout_s=seconds + ANSWER_TIMEOUT_S)
        finally:
            self._listening = False
        return {names[stream.decode()]: _events(entries) for stream, entries in answer or ()}

    async def wake(self) -> None:
        """Make the caller of `listen` return."""
        with suppress(RedisUnavailable):
            while self._listening and not await self._link.command("CLIENT", "UNBLOCK", self._listener_id):
                await asyncio.sleep(NOT_YET_S)

    async def replies(self, record: Record) -> list[Reply] | None:
        """Return the replies to its jobs, in order, arrays included; None if they have expired."""
        replies = []
        for job_id in record.job_ids:
            reply = await self._link.shield(self._reply(job_id))
            if reply is None:
                return None
            replies.append(reply)
        return replies

    async def sweep(self) -> None:
        """End records whose deadline has passed, and queue again what Redis has lost."""
        with suppress(RedisUnavailable):  # the next beat sees to it
            await self._link.run(SWEEP_RECORDS, ())

    async def _try_to_admit(self, record: str, draft: RecordDraft, plan: bytes, jobs: list[QueuedJob], max_items: int) -> RecordAdmitted:
        claim, rows, messages, staged = rows_of(jobs, max_items, in_blobs=True)
        for key, message in staged.items():
            await self._link.write_large(key, message)
        recorded = RecordAdmissionCall(
            bounds=self._reservations.bounds,
            record=record,
            draft=draft,
            ttl_ms=int(self._settings.result_ttl * 1000),
            jobs=rows,
            claim=claim,
            names=NAMES,
        )
        return await self._link.run_with_payload(ENQUEUE_RECORD, recorded, [plan, *messages])

    async def _reply(self, job_id: str) -> Reply | None:
        message = await self._link.read_large(keys.result(job_id))
        if not message:
            return None
        try:
            reply = decode(Reply, message)
        except msgspec.MsgspecError as error:
            raise RedisUnavailable.unreadable(keys.result(job_id), error) from error
        if not reply.stored:
            return reply
        stored = await self._link.read_large(keys.result_arrays(job_id))
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
        return Record.from_values(record_id, place, values)
    except (msgspec.ValidationError, UnicodeDecodeError, KeyError) as error:
        raise RedisUnavailable.unreadable(keys.record(record_id), error) from error


def _events(entries: Sequence[tuple[bytes, Sequence[bytes]]]) -> list[RecordEvent]:
    """Parse events. Entries of other programs are left out."""
    found = [(int(entry.partition(b"-")[0]), dict(zip(flat[::2], flat[1::2], strict=True))) for entry, flat in entries]
    return [
        RecordEvent(number, fields[b"event"].decode(errors="replace"), fields[b"data"])
        for number, fields in found
        if {b"event", b"data"} <= fields.keys()
    ]


MAX_PER_HOST = 16
"""Maximum number of ends that a gateway sends to one host at once, so that a host that hangs delays no other."""


class WebhookClaim(msgspec.Struct, frozen=True):
    max_count: int
    lease_ms: int
    """If this gateway dies, another one claims them when it has run out."""
    most_of_host: int
    """The rest of one host waits."""
    of_host: Mapping[str, int]
    """How many the gateway is sending now."""
    names: Sequence[str]
    """Fields that are read."""


class WebhookTry(msgspec.Struct, frozen=True):
    """A try that has ended. Then the id of the record."""

    attempt: int
    delay_ms: int | None = None
    """Time from the job's end until the next try; None: there is none."""
    gap_ms: int = 0
    """Time from now until the next try, if that time has passed, since no gateway was there."""


CLAIM_WEBHOOKS = Script("claim_webhooks", WebhookClaim, tuple[int, list[tuple[bytes, int, list[bytes | None]]]])
SETTLE_WEBHOOK = Script("settle_webhook", WebhookTry, bytes)


class DueWebhook(NamedTuple):
    record: Record
    """The record as of the job's end."""
    url: str
    attempt: int
    """1 for the first."""

    @property
    def host(self) -> str:
        """Return the host with its port, as `claim_webhooks.lua` reads it."""
        return urlsplit(self.url).netloc


class WebhookQueue:
    """Webhooks of one event loop. Everything raises RedisUnavailable at once while Redis does not answer."""

    def __init__(self, link: GatewayRedisLink) -> None:
        self._link = link

    async def claim(self, max_count: int, lease: float, in_flight: Mapping[str, int]) -> tuple[list[DueWebhook], int]:
        """Return ends that are due, for so many seconds this gateway's, and how many were dropped since the last call: there were too many,
        or they cannot be read. `in_flight`: host → how many the gateway is sending now."""
        claim = WebhookClaim(max_count, int(lease * 1000), MAX_PER_HOST, in_flight, ("webhook", *NAMES))
        dropped, rows = await self._link.run(CLAIM_WEBHOOKS, claim)
        due = []
        for id_, tries, (url, *values) in rows:
            try:
                record = Record.from_values(id_.decode(), -1, values)
                due.append(DueWebhook(record, (url or b"").decode(), tries))
            except (msgspec.ValidationError, UnicodeDecodeError, AttributeError, KeyError):
                # it would be due again and again, and all others with it
                await self._link.run(SETTLE_WEBHOOK, WebhookTry(tries), [id_])
                dropped += 1
        return due, dropped

    async def settle(self, due: DueWebhook, again_after: float | None, gap: float = 0.0) -> None:
        """End a try. `again_after`: seconds after the job's end, None: it is over. `gap`: seconds from now if that has passed."""
        delay_ms = None if again_after is None else int(again_after * 1000)
        await self._link.run(SETTLE_WEBHOOK, WebhookTry(due.attempt, delay_ms, int(gap * 1000)), [due.record.id.encode()])
