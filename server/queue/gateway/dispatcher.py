"""The gateway's end of the queue: admit jobs, wait for their replies, lose none. For one asyncio event loop.

Behind it: *AsyncLink* knows whether Redis is there, *Enqueuer* lets jobs in, *Inbox* waits for replies, *FleetReader* knows
who serves what. The *beat*, every second, refreshes `gw:<id>`, reads clock and load, and enqueues again what Redis has lost.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import redis

from server.processes.supervisor_protocol import process_id
from server.queue import keys
from server.queue.connect import away_is_one_error, connect_async
from server.queue.errors import DeadlineExceeded, QueueFull, RedisAway
from server.queue.first_contact import FirstContact
from server.queue.gateway.connection import AsyncLink
from server.queue.gateway.enqueuer import Enqueuer
from server.queue.gateway.fleet import FleetReader
from server.queue.gateway.large_values import Freight
from server.queue.gateway.quotas import Held, Load, QueueDepth, Reservation, depths, owners
from server.queue.gateway.record_store import Records
from server.queue.gateway.reply_inbox import Inbox, Waiting
from server.queue.gateway.scene_store import Scenes
from server.queue.gateway.status_reader import StatusReader
from server.queue.gateway.vector_store import Vectors
from server.queue.gateway.webhook_queue import Webhooks
from server.queue.keys import Keyspace
from server.queue.messages import GATEWAY_FORMS, Priority, Progress, QueuedJob, Reply, later
from server.queue.resp import AsyncWire
from server.queue.script_rows import whole
from server.settings import Settings

if TYPE_CHECKING:
    from server.telemetry.metrics import Tally

log = logging.getLogger(__name__)

SWEEP_AFTER_BEATS = 0.9
"""All gateways together sweep once in a beat."""


@dataclass(frozen=True)
class DispatcherTimings:
    """Seconds; the defaults are the service's contract, tests shorten them."""

    beat: float = 1.0
    gateway_ttl: float = 5.0
    lost_after: float = 2.0
    """An unanswered job this old is looked for."""
    news: float = 0.5
    """How old `fleet()` and `depth()` may be."""
    fresh_load: float = 0.05
    """A request is not turned away because of figures older than this."""


class Dispatcher:
    """`await start()`, then `submit_all` from any number of coroutines, then `await close()`. It starts and runs while Redis is away."""

    def __init__(self, url: str, settings: Settings, timings: DispatcherTimings | None = None, keyspace: Keyspace | None = None) -> None:
        self.id = process_id()
        """New for each start; names the reply stream."""
        self._timings = timings = timings or DispatcherTimings()
        self._redis: Any = connect_async(url)
        wire = AsyncWire(self._redis, keyspace or Keyspace(settings.key_prefix))
        self._link = link = AsyncLink(wire, settings.redis_grace, FirstContact(url))
        self.now_ms = link.now_ms
        freight = Freight(wire)
        self._fleet = fleet = FleetReader(link, timings.news)
        self.fleet, self.spec = fleet.fleet, fleet.spec
        self.status = StatusReader(link)
        self._enqueuer = Enqueuer(link, freight, settings, fresh=timings.fresh_load, read=self.refresh)
        self._inbox = Inbox(link, freight, self._enqueuer, self.id, lost_after=timings.lost_after)
        self.reserve = self._enqueuer.reserve
        self._listener = AsyncWire(self._redis, wire.keyspace)
        self.records = Records(link, self._listener, freight, settings, self._enqueuer)
        """Clients' jobs that outlive this gateway."""
        self.scenes = Scenes(link, freight, settings)
        self.webhooks = Webhooks(link)
        self.vectors = Vectors(link, freight, settings)
        self.count_items: Callable[[str, int], object] = lambda bundle, count: None
        """Told of items of asynchronous jobs that are done: bundle and number. Of several gateways one is told."""
        self.partition = self._link.digits
        """Ids of records and scenes begin with it."""
        self.gateways = 1
        """How many gateways live, this one among them."""
        self.counted: Tally | None = None
        """This gateway's counts for the history."""
        self._beating: asyncio.Task[None] | None = None
        self._was_known = False
        self._closed = False

    async def start(self) -> None:
        """Connects if Redis is there; if not, it goes on trying in the background."""
        with suppress(RedisAway):
            await self._one_beat()
        self._link.spawn(self._beat_forever())
        self._link.spawn(self._inbox.read_forever())

    async def close(self) -> None:
        """Stop and sign off: workers drop what is still queued for this gateway."""
        with suppress(RedisAway):
            await self.refresh()  # tells what was counted
        self._closed = True
        await self._link.close()
        with suppress(RedisAway), away_is_one_error():
            name, wire = self._link.name, self._link.wire
            await wire.command("DEL", name(keys.gateway(self.id)), name(keys.replies(self.id)))
            await wire.command("SREM", name(keys.GATEWAYS), self.id)
        await self._redis.aclose()
        await self._link.wire.close()
        await self._listener.close()

    def work_ms(self, bundle: str, steps: int | None, *, takes_long: bool) -> int:
        """Return how long the service takes for one job, by the rates that were announced last."""
        return self._fleet.latest.work_ms(bundle, steps, takes_long=takes_long)

    async def submit_all(
        self,
        jobs: list[QueuedJob],
        *,
        reservation: Reservation | None = None,
        on_admitted: Callable[[int], None] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        on_reply: Callable[[Reply], None] | None = None,
    ) -> list[Reply]:
        """Enqueue the jobs of one request, all or none, and wait for every reply; in the order of the jobs.

        The reservation is given up as soon as the queue counts the jobs itself. `on_admitted` is then called with how many wait before the
        first job, `on_progress` and `on_reply` with what comes from workers, all in the event loop. A reply may carry a `failure`.
        The caller is cancelled at the deadline by others: then the jobs are cancelled too, as they are where this raises QueueFull,
        RedisAway (away for longer than `redis_grace`), or DeadlineExceeded for what came too late to be queued.
        """
        refused = False
        expected = self._inbox.expect(jobs, on_progress, on_reply)
        try:
            max_items = 0 if reservation is None else reservation.claim.max_items
            place = await self._enqueue(expected, max_items, place=on_admitted is not None)
            self._inbox.sent(expected)
            if reservation is not None:
                reservation.release()
            if on_admitted is not None:
                on_admitted(place)
            return [await waiting.reply for waiting in expected]
        except QueueFull:
            refused = True
            raise
        finally:
            self._inbox.forget(expected)
            unanswered = [waiting.job for waiting in expected if not waiting.answered]
            if unanswered and not refused and not self._closed:
                self._enqueuer.cancel([job.id for job in unanswered])

    async def _enqueue(self, expected: Sequence[Waiting], max_items: int, *, place: bool) -> int:
        """Redis' clock may have been set since it was read: then the deadlines move with it."""
        try:
            return await self._enqueuer.enqueue([waiting.job for waiting in expected], max_items=max_items, place=place)
        except DeadlineExceeded:
            if not (jumped := await self._enqueuer.jumped_ms()):
                raise
        for waiting in expected:
            waiting.job = later(waiting.job, jumped)
        return await self._enqueuer.enqueue([waiting.job for waiting in expected], max_items=max_items, place=place)

    async def depth(self) -> dict[tuple[str, Priority], QueueDepth]:
        """(bundle, priority) → unfinished jobs, at most half a second old. Raises RedisAway at once while Redis does not answer."""
        if self._enqueuer.age() > self._timings.news or self._link.away:
            await self.refresh()
        return dict(self._enqueuer.load.depths)

    async def set_repository(self, name: str, state: str) -> int:
        """`loaded` or `unloaded`: workers follow, gateways read it in `fleet().repository`.

        Returns the repository's revision; a worker whose `repository_revision` is as high has followed. Raises RedisAway.
        """
        service = self._link.service_name
        await self._link.command("HSET", service(keys.REPOSITORY), name, state)
        try:
            revision = await self._link.command("INCR", service(keys.REVISION))
        except redis.exceptions.ResponseError as error:  # no number
            away = RedisAway.unreadable(keys.REVISION, error)
            self._link.lost(away)
            raise away from error
        self._fleet.forget()
        return int(revision)

    async def _beat_forever(self) -> None:
        nudge, tried_s = self._link.nudge, 0.0
        while not self._closed:
            with suppress(TimeoutError):
                await asyncio.wait_for(nudge.wait(), self._link.pause(tried_s) if self._link.away else self._timings.beat)
            nudge.clear()
            began = time.monotonic()
            try:
                await self._one_beat()
                await self._inbox.send_lost_again()
            except RedisAway as away:
                if isinstance(away.__cause__, redis.exceptions.ReadOnlyError):  # a master no more: new connections find the new one
                    await self._redis.connection_pool.disconnect()
                    await self._link.wire.close()
                    await self._listener.close()
                if (given_up := self._link.given_up()) is not None:
                    self._inbox.give_up(given_up)
            except Exception:
                log.exception("the dispatcher's beat failed")
            tried_s = time.monotonic() - began

    async def refresh(self) -> None:
        """A beat between two: clock and load are new, what was counted is told. Raises RedisAway at once while Redis does not answer."""
        self._link.check()
        await self._one_beat()

    def _one_beat(self) -> asyncio.Future[None]:
        """The beat that is under way, or a new one. Whoever waits may be cancelled: it goes on for the others."""
        if self._beating is None or self._beating.done():
            self._beating = self._link.spawn(self._beat())
            self._beating.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to look at it
        return asyncio.shield(self._beating)

    async def _beat(self) -> None:
        ttl_ms, sweep_ms = int(self._timings.gateway_ttl * 1000), int(self._timings.beat * SWEEP_AFTER_BEATS * 1000)
        arguments: list[Any] = [self.id, ttl_ms, self._inbox.last_read, GATEWAY_FORMS, self.partition + secrets.token_hex(3), sweep_ms]
        told = self.counted.take() if self.counted is not None else {}
        arguments += (word for pair in told.items() for word in pair)
        try:
            answer = await self._link.at_once(lambda: self._link.wire.script("beat", *arguments), beat=True)
        except BaseException:
            if self.counted is not None:
                self.counted.give_back(told)
            raise
        known, epoch, sweeps, items, now_ms, jobs, nbytes, work_ms, rows, flat, self.gateways = answer
        self.records.epoch = epoch.decode()
        if self._was_known and not known:
            self._inbox.last_read = "0-0"  # a new stream may count from a clock that is behind
        self._was_known = True
        self._link.found()
        self._enqueuer.set_load(now_ms, Load(Held(jobs, nbytes, work_ms), depths(now_ms, rows), owners(flat)))
        for bundle, count in zip(items[::2], items[1::2], strict=True):
            self.count_items(bundle.decode(errors="replace"), whole(count))
        if sweeps:
            self._link.spawn(self.records.sweep())
