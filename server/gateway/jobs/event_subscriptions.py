"""Clients that follow jobs: one blocking read for all of them, and a poll each second for changes without events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from server.concurrency import ClientBound
from server.http.problems import Problem, ProblemKind
from server.queue.connect import RedisUnavailable
from server.queue.gateway.record_store import RecordStore
from server.queue.record import FINAL_EVENTS, OPEN_STATES, EventBatch, RecordEvent, State
from server.queue.script import RecordLost
from server.telemetry import logs
from server.telemetry.metrics import GatewayMetrics

POLL_INTERVAL_S = 1.0
"""Time between polls: places change and records expire without an event."""
PAUSE_S = 0.1
MIN_POLL_INTERVAL_S = 0.05
"""Minimum time between polls, however many subscriptions are added."""
REDIS_RETRY_PAUSE_S = 0.5
MAX_UNREAD_UPDATES = 4
"""Maximum number of updates that wait for a client before polls leave it out."""
RETRY_AFTER = 5

log = logs.get(__name__)

Update = EventBatch | RecordLost


@dataclass(eq=False)
class EventSubscription:
    """One client that follows one job."""

    record: str
    after: int
    """Number of the last event that was read for it."""
    on_capacity: Callable[[], object]
    """Called when updates that were not read kept others from coming, and some have been read now."""
    updates: asyncio.Queue[Update | None] = field(default_factory=asyncio.Queue)

    @property
    def has_capacity(self) -> bool:
        return self.updates.qsize() < MAX_UNREAD_UPDATES

    def publish(self, state: State | None, events: list[RecordEvent]) -> None:
        if events:
            self.after = events[-1].number
        self.updates.put_nowait(EventBatch(state, events))

    async def read(self) -> AsyncIterator[list[RecordEvent]]:
        """Yield events as they come, until the last one, or until this gateway ends. Raises RecordLost."""
        while (update := await self.updates.get()) is not None:
            if self.updates.qsize() == MAX_UNREAD_UPDATES - 1:
                self.on_capacity()
            if isinstance(update, RecordLost):
                raise update
            if update.state is None:  # removed since the last poll, so that its last event is gone, too
                yield [RecordEvent(self.after + 1, "cancelled", b"{}")]
                return
            yield update.events
            if (update.state not in OPEN_STATES and not update.events) or any(event.name in FINAL_EVENTS for event in update.events):
                return


class EventSubscriptions:
    """Subscriptions to jobs' events: at most half of a gateway's connections, and a quarter for one client."""

    def __init__(self, records: RecordStore, metrics: GatewayMetrics, max_connections: int) -> None:
        self._records = records
        self._metrics = metrics
        self._streams = ClientBound(max(1, max_connections // 2), max(1, max_connections // 4))
        self._readers: dict[EventSubscription, None] = {}
        """Subscriptions, those that were polled longest ago first."""
        self._poll: asyncio.Task[None] | None = None
        self._waking: asyncio.Task[None] | None = None
        self._is_poll_requested = False
        self._closed = False

    @contextmanager
    def follow(self, record: str, after: int, client: str) -> Iterator[EventSubscription]:
        """Follow a record. client: an address; empty for clients that cannot be distinguished. Raises Problem: 429, 503."""
        self._check(client)
        reader = EventSubscription(record, after, self._request_poll)
        self._readers[reader] = None
        self._streams.take(client, 1)
        self._metrics.event_readers.inc()
        self._request_poll()
        try:
            yield reader
        finally:
            self._readers.pop(reader)
            self._streams.give(client, 1)
            self._metrics.event_readers.dec()

    def close(self) -> None:
        """End every stream at once: its reader resumes at another gateway."""
        self._closed = True
        for reader in self._readers:
            reader.updates.put_nowait(None)

    def _check(self, client: str) -> None:
        if self._closed:
            raise Problem(ProblemKind.DRAINING, "the gateway is shutting down and accepts no new requests", retry_after=1)
        match self._streams.exceeded_bound(client, 1):
            case "total":
                detail = f"{self._streams.total} streams of events are open, half of OPSIN_MAX_CONNECTIONS"
            case "each":
                detail = f"{client} reads {self._streams.each} streams of events, a quarter of OPSIN_MAX_CONNECTIONS"
            case _:
                return
        raise Problem(ProblemKind.TOO_MANY_STREAMS, detail, retry_after=RETRY_AFTER)

    def _request_poll(self) -> None:
        """Poll soon: a subscription is new, or has capacity again."""
        loop = asyncio.get_running_loop()
        self._is_poll_requested = True
        if self._poll is None or self._poll.done():
            self._poll = loop.create_task(self._poll_forever())
        elif self._waking is None or self._waking.done():
            self._waking = loop.create_task(self._records.wake())

    async def _poll_forever(self) -> None:
        polled_at = -MIN_POLL_INTERVAL_S
        while self._readers:
            try:
                await asyncio.sleep(max(0.0, polled_at + MIN_POLL_INTERVAL_S - time.monotonic()))
                self._is_poll_requested, polled_at = False, time.monotonic()
                await self._poll_once()
                until = polled_at + POLL_INTERVAL_S
                while not self._is_poll_requested and self._readers and (left := until - time.monotonic()) > 0:
                    await self._listen(left)
            except RedisUnavailable:
                await asyncio.sleep(REDIS_RETRY_PAUSE_S)
            except Exception:
                log.exception("reading events failed")
                await asyncio.sleep(REDIS_RETRY_PAUSE_S)

    async def _poll_once(self) -> None:
        asking = [reader for reader in self._readers if reader.has_capacity]
        answers = await self._records.events([(one.record, one.after) for one in asking])
        if len(answers) < len(asking):  # the others come next, first
            self._is_poll_requested = True
        for reader, update in zip(asking, answers, strict=False):
            if reader not in self._readers:  # it has left
                continue
            self._readers[reader] = self._readers.pop(reader)
            if isinstance(update, RecordLost):
                reader.updates.put_nowait(update)
            elif update.events or update.state not in OPEN_STATES:
                reader.publish(update.state, update.events)

    async def _listen(self, seconds: float) -> None:
        last_read: dict[str, int] = {}
        asking = [reader for reader in self._readers if reader.has_capacity]
        for reader in asking:
            last_read[reader.record] = min(reader.after, last_read.get(reader.record, reader.after))
        received = await self._records.listen(last_read, seconds) if last_read else {}
        published = False
        for reader in asking:  # others may have read less than was requested
            events = [event for event in received.get(reader.record, ()) if event.number > reader.after]
            if events and reader in self._readers:
                reader.publish("running", events)
                published = True
        if not published and (received or not last_read):  # events of others would be received again at once
            await asyncio.sleep(min(seconds, PAUSE_S))
