"""A gateway's sign of life: every second it refreshes `gw:<id>`, reads clock and load, and has lost jobs sent again."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
import redis

from server.queue import keys
from server.queue.connect import redis_errors_as_unavailable
from server.queue.errors import RedisUnavailable
from server.queue.gateway.connection import GatewayRedisLink
from server.queue.gateway.record_store import RecordStore
from server.queue.gateway.reply_inbox import ReplyInbox
from server.queue.gateway.reservations import Load, Reservations
from server.queue.gateway.status_reader import QueueDepth, StreamLoad, depths
from server.queue.gateway.submitter import Submitter
from server.queue.messages import GATEWAY_FORMS, Priority
from server.queue.script import Script, parse_whole_number

if TYPE_CHECKING:
    from server.telemetry.metrics import HistoryCounts

log = logging.getLogger(__name__)

SWEEP_AFTER_BEATS = 0.9
"""Fraction of a beat in which all gateways together sweep once."""


class SignOfLife(msgspec.Struct, frozen=True):
    gateway: str
    ttl_ms: int
    last_read: str
    """Id of the last reply that it has read."""
    forms: str
    """Forms of messages that it understands."""
    epoch: str
    """Epoch for a Redis that has none."""
    sweep_ms: int
    """Time until records may be swept again."""
    counts: dict[str, int]
    """Counts since the last time, for the history."""


class BeatAnswer(msgspec.Struct, frozen=True, array_like=True):
    was_known: int
    """1 if Redis still knew the gateway."""
    epoch: bytes
    sweeps: int
    """1 if it is this gateway's turn to sweep records."""
    items: list[bytes]
    """{bundle, items}… of clients' jobs that are done and that no gateway has counted yet."""
    now_ms: int
    jobs: int
    """Unfinished ones."""
    nbytes: int
    work_ms: int
    streams: list[StreamLoad]
    gateways: int
    """Number of those that live."""


BEAT = Script("beat", SignOfLife, BeatAnswer)


class Beat:
    """The beat of one event loop. It runs also while Redis is unavailable."""

    def __init__(
        self,
        gateway: str,
        link: GatewayRedisLink,
        inbox: ReplyInbox,
        submitter: Submitter,
        reservations: Reservations,
        records: RecordStore,
        *,
        every: float,
        ttl: float,
        max_age: float,
    ) -> None:
        self._id = gateway
        self._link = link
        self._inbox = inbox
        self._submitter = submitter
        self._reservations = reservations
        self._records = records
        self._every = every
        self._ttl = ttl
        self._max_age = max_age
        self.count_items: Callable[[str, int], object] = lambda bundle, count: None
        """Called with bundle and number of items of asynchronous jobs that are done. Of several gateways one counts them."""
        self.tally: HistoryCounts | None = None
        """This gateway's counts for the history."""
        self.gateways = 1
        """Number of gateways that live, this one included."""
        self._depths: dict[tuple[str, Priority], QueueDepth] = {}
        self._read_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._was_registered = False

    async def run_forever(self) -> None:
        requested, tried_s = self._link.beat_requested, 0.0
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(requested.wait(), self._link.pause(tried_s) if self._link.is_unavailable else self._every)
            requested.clear()
            started = time.monotonic()
            try:
                await self.join()
                await self._submitter.resend_lost()
            except RedisUnavailable as unavailable:
                if isinstance(unavailable.__cause__, redis.exceptions.ReadOnlyError):  # a master no more: new connections find the new one
                    await self._link.reconnect()
                if (error := self._link.grace_error()) is not None:
                    self._inbox.fail_all(error)
            except Exception:
                log.exception("the beat failed")
            tried_s = time.monotonic() - started

    async def depths(self) -> dict[tuple[str, Priority], QueueDepth]:
        """Return (bundle, priority) → unfinished jobs, at most `max_age` old. Raises RedisUnavailable."""
        if time.monotonic() - self._read_at > self._max_age or self._link.is_unavailable:
            await self.refresh()
        return self._depths

    async def refresh(self) -> None:
        """Make a beat between two: it refreshes clock and load, and writes counts. Raises RedisUnavailable."""
        self._link.raise_if_unavailable()
        await self.join()

    def join(self) -> asyncio.Future[None]:
        """Join the beat that is under way, or start one. A caller may be cancelled: the beat goes on for the others."""
        if self._task is None or self._task.done():
            self._task = self._link.spawn(self._beat())
            self._task.add_done_callback(lambda done: done.cancelled() or done.exception())  # the caller may have left
        return asyncio.shield(self._task)

    async def sign_off(self) -> None:
        """Let workers drop what is still queued for this gateway."""
        with suppress(RedisUnavailable), redis_errors_as_unavailable():
            name, wire = self._link.name, self._link.resp
            await wire.command("DEL", name(keys.gateway(self._id)), name(keys.replies(self._id)))
            await wire.command("SREM", name(keys.GATEWAYS), self._id)

    async def _beat(self) -> None:
        counts = self.tally.take() if self.tally is not None else {}
        sign = SignOfLife(
            gateway=self._id,
            ttl_ms=int(self._ttl * 1000),
            last_read=self._inbox.last_read,
            forms=GATEWAY_FORMS,
            epoch=self._link.digits + secrets.token_hex(3),
            sweep_ms=int(self._every * SWEEP_AFTER_BEATS * 1000),
            counts=counts,
        )
        try:
            answer = await self._link.call_now(lambda: self._link.resp.run(BEAT, sign), beat=True)
        except BaseException:
            if self.tally is not None:
                self.tally.give_back(counts)
            raise
        self._records.epoch = answer.epoch.decode()
        if self._was_registered and not answer.was_known:
            self._inbox.last_read = "0-0"  # a new stream may count from a clock that is behind
        self._was_registered = True
        self._link.mark_available()
        self.gateways = answer.gateways
        self._depths, self._read_at = depths(answer.now_ms, answer.streams), time.monotonic()
        self._link.set_clock(answer.now_ms)
        self._reservations.load = Load(answer.jobs, answer.nbytes, answer.work_ms)
        for bundle, count in zip(answer.items[::2], answer.items[1::2], strict=True):
            self.count_items(bundle.decode(errors="replace"), parse_whole_number(count))
        if answer.sweeps:
            self._link.spawn(self._records.sweep())
