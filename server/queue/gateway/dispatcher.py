"""The gateway's end of the queue: admit jobs, wait for their replies, lose none. For one asyncio event loop.

Every second it gives a sign of life: it refreshes `gw:<id>`, reads clock and load, and has lost jobs sent again.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import redis

from server.processes.supervisor_protocol import process_id
from server.queue import keys
from server.queue.connect import FirstContact, RedisUnavailable, connect_async
from server.queue.gateway.connection import GatewayRedisLink
from server.queue.gateway.fleet import FleetReader
from server.queue.gateway.kept_values import SceneStore, VectorStore
from server.queue.gateway.record_store import RecordStore, WebhookQueue
from server.queue.gateway.reply_inbox import ReplyInbox
from server.queue.gateway.reservations import Load, Reservations
from server.queue.gateway.status_reader import StatusQueue, StatusReader, StreamLoad, queues
from server.queue.gateway.submitter import Submitter
from server.queue.keys import Keyspace
from server.queue.messages import GATEWAY_FORMS
from server.queue.script import Script, parse_whole_number
from server.settings import Settings

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
    """Epoch that begins if Redis has started since the last beat of any gateway."""
    sweep_ms: int
    """Time until records may be swept again."""
    counts: dict[str, int]
    """Counts since the last time, for the history."""
    waiting: int
    """Number of its requests that wait for a first worker."""


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


BEAT = Script("beat", SignOfLife, BeatAnswer)


@dataclass(frozen=True)
class DispatcherTimings:
    """Seconds; the defaults are the service's contract, tests shorten them."""

    beat: float = 1.0
    gateway_ttl: float = 5.0
    lost_after: float = 2.0
    """An unanswered job this old is looked for."""
    news: float = 0.5
    """Maximum age of the fleet and of the depths of the queue."""
    fresh_load: float = 0.05
    """Time for which a reservation may grow by what Redis has allowed."""


class Dispatcher:
    """Parts of the queue that share a connection. `await start()`, then use them from any number of coroutines, then `await close()`."""

    def __init__(self, url: str, settings: Settings, timings: DispatcherTimings | None = None) -> None:
        self.id = process_id()
        """New for each start; names the reply stream."""
        self._timings = timings = timings or DispatcherTimings()
        self.link = link = GatewayRedisLink(connect_async(url), Keyspace.from_settings(settings), settings.redis_grace, FirstContact(url))
        self.fleet = FleetReader(link, timings.news)
        self.status = StatusReader(link)
        self._inbox = ReplyInbox(link, self.id, lost_after=timings.lost_after)
        self.reservations = Reservations(link, settings, timings.fresh_load)
        self.submitter = Submitter(link, self._inbox, self.reservations)
        self.records = RecordStore(link, settings, self.submitter, self.reservations)
        self.scenes = SceneStore(link, settings)
        self.webhooks = WebhookQueue(link)
        self.vectors = VectorStore(link, settings)
        self.count_items: Callable[[str, int], object] = lambda bundle, count: None
        """Called with bundle and number of items of asynchronous jobs that are done. Of several gateways one counts them."""
        self.history_counts: HistoryCounts | None = None
        """This gateway's counts for the history."""
        self.waiting_for_worker = 0
        """Number of requests that wait in this gateway for a first worker."""
        self.gateways = 1
        """Number of gateways that live, this one included."""
        self._queues: list[StatusQueue] = []
        self._read_at = 0.0
        self._beat_task: asyncio.Task[None] | None = None
        self._was_registered = False

    async def start(self) -> None:
        """Connect if Redis is there; if not, try again in the background."""
        with suppress(RedisUnavailable):
            await self._join_beat()
        self.link.spawn(self._beat_forever())
        self.link.spawn(self._inbox.read_forever())

    async def close(self) -> None:
        """Stop and sign off: workers drop what is still queued for this gateway."""
        with suppress(RedisUnavailable):
            await self.refresh()  # writes what was counted
        await self.link.close()
        with suppress(RedisUnavailable):
            name, wire = self.link.name, self.link.resp
            await wire.command("DEL", name(keys.gateway(self.id)), name(keys.replies(self.id)))
            await wire.command("SREM", name(keys.GATEWAYS), self.id)
        await self.link.disconnect()

    async def queues(self) -> list[StatusQueue]:
        """Return the unfinished jobs of each bundle and priority, all as waiting ones, at most `news` old. Raises RedisUnavailable."""
        if time.monotonic() - self._read_at > self._timings.news or self.link.is_unavailable:
            await self.refresh()
        return self._queues

    async def refresh(self) -> None:
        """Make a beat between two: it refreshes clock and load, and writes counts. Raises RedisUnavailable."""
        self.link.raise_if_unavailable()
        await self._join_beat()

    async def _beat_forever(self) -> None:
        requested, tried_s = self.link.beat_requested, 0.0
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(requested.wait(), self.link.pause(tried_s) if self.link.is_unavailable else self._timings.beat)
            requested.clear()
            started = time.monotonic()
            try:
                await self._join_beat()
                await self.submitter.resend_lost()
            except RedisUnavailable as unavailable:
                if isinstance(unavailable.__cause__, redis.exceptions.ReadOnlyError):  # a master no more: new connections find the new one
                    await self.link.disconnect()
                if (error := self.link.grace_error()) is not None:
                    self._inbox.fail_all(error)
            except Exception:
                log.exception("the beat failed")
            tried_s = time.monotonic() - started

    def _join_beat(self) -> asyncio.Future[None]:
        """Join the beat that is under way, or start one. A caller may be cancelled: the beat goes on for the others."""
        if self._beat_task is None or self._beat_task.done():
            self._beat_task = self.link.start(self._beat())
        return asyncio.shield(self._beat_task)

    async def _beat(self) -> None:
        counts = self.history_counts.take() if self.history_counts is not None else {}
        sign = SignOfLife(
            gateway=self.id,
            ttl_ms=int(self._timings.gateway_ttl * 1000),
            last_read=self._inbox.last_read,
            forms=GATEWAY_FORMS,
            epoch=self.link.keyspace.digits + secrets.token_hex(3),
            sweep_ms=int(self._timings.beat * SWEEP_AFTER_BEATS * 1000),
            counts=counts,
            waiting=self.waiting_for_worker,
        )
        try:
            answer = await self.link.call_now(self.link.resp.run(BEAT, sign), beat=True)
        except BaseException:
            if self.history_counts is not None:
                self.history_counts.give_back(counts)
            raise
        if self.records.epoch != (epoch := answer.epoch.decode()):  # Redis may have lost all that it kept; it refuses this if it is full
            self.link.start(self.link.resp.command("SET", self.link.service_name(keys.CELL), self.link.keyspace.cell, "NX"))
        self.records.epoch = epoch
        if self._was_registered and not answer.was_known:
            self._inbox.last_read = "0-0"  # a new stream may count from a clock that is behind
        self._was_registered = True
        self.link.mark_available()
        self.gateways = answer.gateways
        self._queues, self._read_at = queues(answer.now_ms, answer.streams), time.monotonic()
        self.link.set_clock(answer.now_ms)
        self.reservations.load = Load(answer.jobs, answer.nbytes, answer.work_ms)
        for bundle, count in zip(answer.items[::2], answer.items[1::2], strict=True):
            self.count_items(bundle.decode(errors="replace"), parse_whole_number(count))
        if answer.sweeps:
            self.link.spawn(self.records.sweep())
