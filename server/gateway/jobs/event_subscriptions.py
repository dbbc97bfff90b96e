"""Clients that follow jobs: one blocking read for all of them, and a look each second at what no event tells."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from server.concurrency.client_bound import ClientBound
from server.http.problems import Kind, Problem
from server.queue.errors import RecordLost, RedisAway
from server.queue.gateway.record_store import Records
from server.queue.record import LAST_EVENTS, OPEN, Happened, RecordEvent, State
from server.telemetry import logs
from server.telemetry.metrics import GatewayMetrics

LOOK_EVERY_S = 1.0
"""Places change and records expire without an event."""
PAUSE_S = 0.1
LOOKS_APART_S = 0.05
"""However many readers come."""
PAUSE_WHILE_AWAY_S = 0.5
MOST_UNREAD = 4
"""Looks that may wait for a client; more are not made for it."""
RETRY_AFTER = 5

log = logs.get(__name__)

News = Happened | RecordLost


@dataclass(eq=False)
class Reader:
    """One client that follows one job."""

    record: str
    after: int
    """Number of the last event that was read for it."""
    has_room: Callable[[], object]
    """Called when news that were not read kept others from coming, and some have been read now."""
    news: asyncio.Queue[News | None] = field(default_factory=asyncio.Queue)

    @property
    def wants_news(self) -> bool:
        return self.news.qsize() < MOST_UNREAD

    def tell(self, state: State | None, events: list[RecordEvent]) -> None:
        if events:
            self.after = events[-1].number
        self.news.put_nowait(Happened(state, events))

    async def read(self) -> AsyncIterator[list[RecordEvent]]:
        """Events as they come, until the last one, or until this gateway ends. Raises RecordLost."""
        while (news := await self.news.get()) is not None:
            if self.news.qsize() == MOST_UNREAD - 1:
                self.has_room()
            if isinstance(news, RecordLost):
                raise news
            if news.state is None:  # removed since the last look, so that its last event is gone, too
                yield [RecordEvent(self.after + 1, "cancelled", b"{}")]
                return
            yield news.events
            if (news.state not in OPEN and not news.events) or any(event.name in LAST_EVENTS for event in news.events):
                return


class EventSubscriptions:
    """At most half of a gateway's connections read events, and one client's at most a quarter."""

    def __init__(self, records: Records, metrics: GatewayMetrics, max_connections: int) -> None:
        self._records = records
        self._metrics = metrics
        self._streams = ClientBound(max(1, max_connections // 2), max(1, max_connections // 4))
        self._readers: dict[Reader, None] = {}
        """Readers that were looked for longest ago come first."""
        self._poll: asyncio.Task[None] | None = None
        self._waking: asyncio.Task[None] | None = None
        self._look_now = False
        self._closed = False

    @contextmanager
    def follow(self, record: str, after: int, client: str) -> Iterator[Reader]:
        """`client`: an address; empty for what nobody can tell apart. Raises Problem: 429, 503."""
        self._check(client)
        reader = Reader(record, after, self._look_soon)
        self._readers[reader] = None
        self._streams.take(client, 1)
        self._metrics.event_readers.inc()
        self._look_soon()
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
            reader.news.put_nowait(None)

    def _check(self, client: str) -> None:
        if self._closed:
            raise Problem(Kind.DRAINING, "this gateway takes no new work", retry_after=1)
        match self._streams.over(client, 1):
            case "total":
                detail = f"{self._streams.total} streams of events are open, half of OPSIN_MAX_CONNECTIONS"
            case "each":
                detail = f"{client} reads {self._streams.each} streams of events, a quarter of OPSIN_MAX_CONNECTIONS"
            case _:
                return
        raise Problem(Kind.TOO_MANY_READERS, detail, retry_after=RETRY_AFTER)

    def _look_soon(self) -> None:
        """There is somebody to be told, or who can be told again."""
        loop = asyncio.get_running_loop()
        self._look_now = True
        if self._poll is None or self._poll.done():
            self._poll = loop.create_task(self._look_forever())
        elif self._waking is None or self._waking.done():
            self._waking = loop.create_task(self._records.wake())

    async def _look_forever(self) -> None:
        looked = -LOOKS_APART_S
        while self._readers:
            try:
                await asyncio.sleep(max(0.0, looked + LOOKS_APART_S - time.monotonic()))
                self._look_now, looked = False, time.monotonic()
                await self._look()
                until = looked + LOOK_EVERY_S
                while not self._look_now and self._readers and (left := until - time.monotonic()) > 0:
                    await self._listen(left)
            except RedisAway:
                await asyncio.sleep(PAUSE_WHILE_AWAY_S)
            except Exception:
                log.exception("reading events failed")
                await asyncio.sleep(PAUSE_WHILE_AWAY_S)

    async def _look(self) -> None:
        asking = [reader for reader in self._readers if reader.wants_news]
        answers = await self._records.events([(one.record, one.after) for one in asking])
        if len(answers) < len(asking):  # the others come next, first
            self._look_now = True
        for reader, news in zip(asking, answers, strict=False):
            if reader not in self._readers:  # it has left meanwhile
                continue
            self._readers[reader] = self._readers.pop(reader)
            if isinstance(news, RecordLost):
                reader.news.put_nowait(news)
            elif news.events or news.state not in OPEN:
                reader.tell(news.state, news.events)

    async def _listen(self, seconds: float) -> None:
        known: dict[str, int] = {}
        asking = [reader for reader in self._readers if reader.wants_news]
        for reader in asking:
            known[reader.record] = min(reader.after, known.get(reader.record, reader.after))
        heard = await self._records.listen(known, seconds) if known else {}
        told = False
        for reader in asking:  # others may know less than what was asked for
            events = [event for event in heard.get(reader.record, ()) if event.number > reader.after]
            if events and reader in self._readers:
                reader.tell("running", events)
                told = True
        if not told and (heard or not known):  # what others have written would be heard again at once
            await asyncio.sleep(min(seconds, PAUSE_S))
