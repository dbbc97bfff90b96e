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
from server.queue.connect import away_is_one_error
from server.queue.errors import RedisAway
from server.queue.gateway.connection import AsyncLink
from server.queue.gateway.record_store import Records
from server.queue.gateway.reply_inbox import Inbox
from server.queue.gateway.reservations import Load, Reservations
from server.queue.gateway.status_reader import QueueDepth, StreamLoad, depths
from server.queue.gateway.submitter import Submitter
from server.queue.messages import GATEWAY_FORMS, Priority
from server.queue.script import Script
from server.queue.script_rows import parse_whole_number

if TYPE_CHECKING:
    from server.telemetry.metrics import HistoryCounts

log = logging.getLogger(__name__)

SWEEP_AFTER_BEATS = 0.9
"""All gateways together sweep once in a beat."""


class SignOfLife(msgspec.Struct, frozen=True):
    gateway: str
    ttl_ms: int
    last_read: str
    """Id of the last reply that it has read."""
    forms: str
    """Forms of messages that it understands."""
    epoch: str
    """For a Redis that has none."""
    sweep_ms: int
    """Until records may be swept again."""
    counts: dict[str, int]
    """What it has counted since the last time, for the history."""


class BeatAnswer(msgspec.Struct, frozen=True, array_like=True):
    known: int
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
    """How many live."""


BEAT = Script("beat", SignOfLife, BeatAnswer)


class Beat:
    """For one event loop. It starts and runs while Redis is away."""

    def __init__(
        self,
        gateway: str,
        link: AsyncLink,
        inbox: Inbox,
        submitter: Submitter,
        reservations: Reservations,
        records: Records,
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
        """How many gateways live, this one among them."""
        self._depths: dict[tuple[str, Priority], QueueDepth] = {}
        self._read_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._was_registered = False

    async def run_forever(self) -> None:
        nudge, tried_s = self._link.nudge, 0.0
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(nudge.wait(), self._link.pause(tried_s) if self._link.away else self._every)
            nudge.clear()
            began = time.monotonic()
            try:
                await self.join()
                await self._submitter.resend_lost()
            except RedisAway as away:
                if isinstance(away.__cause__, redis.exceptions.ReadOnlyError):  # a master no more: new connections find the new one
                    await self._link.reconnect()
                if (given_up := self._link.given_up()) is not None:
                    self._inbox.give_up(given_up)
            except Exception:
                log.exception("the beat failed")
            tried_s = time.monotonic() - began

    async def depths(self) -> dict[tuple[str, Priority], QueueDepth]:
        """Return (bundle, priority) → unfinished jobs, at most `max_age` old. Raises RedisAway at once while Redis does not answer."""
        if time.monotonic() - self._read_at > self._max_age or self._link.away:
            await self.refresh()
        return self._depths

    async def refresh(self) -> None:
        """Make a beat between two: it refreshes clock and load, and writes counts. Raises RedisAway at once while Redis does not answer."""
        self._link.check()
        await self.join()

    def join(self) -> asyncio.Future[None]:
        """The beat that is under way, or a new one. Whoever waits may be cancelled: it goes on for the others."""
        if self._task is None or self._task.done():
            self._task = self._link.spawn(self._beat())
            self._task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to look at it
        return asyncio.shield(self._task)

    async def sign_off(self) -> None:
        """Workers drop what is still queued for this gateway."""
        with suppress(RedisAway), away_is_one_error():
            name, wire = self._link.name, self._link.wire
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
            heard = await self._link.at_once(lambda: self._link.wire.run(BEAT, sign), beat=True)
        except BaseException:
            if self.tally is not None:
                self.tally.give_back(counts)
            raise
        self._records.epoch = heard.epoch.decode()
        if self._was_registered and not heard.known:
            self._inbox.last_read = "0-0"  # a new stream may count from a clock that is behind
        self._was_registered = True
        self._link.found()
        self.gateways = heard.gateways
        self._depths, self._read_at = depths(heard.now_ms, heard.streams), time.monotonic()
        self._link.set_clock(heard.now_ms)
        self._reservations.load = Load(heard.jobs, heard.nbytes, heard.work_ms)
        for bundle, count in zip(heard.items[::2], heard.items[1::2], strict=True):
            self.count_items(bundle.decode(errors="replace"), parse_whole_number(count))
        if heard.sweeps:
            self._link.spawn(self._records.sweep())
