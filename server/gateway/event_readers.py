"""Clients that follow jobs: one look into Redis at a time for all of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from server.gateway.problems import Kind, Problem
from server.queue.errors import RedisAway
from server.queue.record import OPEN, Event, Happened, RecordLost
from server.queue.records import Records
from server.telemetry import logs
from server.telemetry.metrics import GatewayMetrics

TICK_S = 0.1
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
    news: asyncio.Queue[News | None] = field(default_factory=asyncio.Queue)

    async def read(self) -> AsyncIterator[list[Event]]:
        """Events as they come, until the last one, or until this gateway ends. Raises RecordLost."""
        while (news := await self.news.get()) is not None:
            if isinstance(news, RecordLost):
                raise news
            if news.state is None:  # removed since the last look, so that its last event is gone, too
                yield [Event(self.after + 1, "cancelled", b"{}")]
                return
            yield news.events
            if news.state not in OPEN and not news.events:
                return


class EventReaders:
    """At most half of a gateway's connections read events, and one client's at most a quarter."""

    def __init__(self, records: Records, metrics: GatewayMetrics, max_connections: int) -> None:
        self._records = records
        self._metrics = metrics
        self._most = max(1, max_connections // 2)
        self._most_of_one = max(1, max_connections // 4)
        self._readers: dict[Reader, None] = {}
        """Whoever has been looked for longest ago comes first."""
        self._of_client: Counter[str] = Counter()
        self._poll: asyncio.Task[None] | None = None
        self._closed = False

    @contextmanager
    def follow(self, record: str, after: int, client: str) -> Iterator[Reader]:
        """`client`: an address; empty for what nobody can tell apart. Raises Problem: 429, 503."""
        self._check(client)
        reader = Reader(record, after)
        self._readers[reader] = None
        self._of_client[client] += 1
        self._metrics.event_readers.inc()
        if self._poll is None or self._poll.done():
            self._poll = asyncio.get_running_loop().create_task(self._look_forever())
        try:
            yield reader
        finally:
            self._readers.pop(reader)
            self._of_client[client] -= 1
            if not self._of_client[client]:
                del self._of_client[client]
            self._metrics.event_readers.dec()

    def close(self) -> None:
        """End every stream at once: its reader resumes at another gateway."""
        self._closed = True
        for reader in self._readers:
            reader.news.put_nowait(None)

    def _check(self, client: str) -> None:
        if self._closed:
            raise Problem(Kind.DRAINING, "this gateway takes no new work", retry_after=1)
        if len(self._readers) >= self._most:
            detail = f"{self._most} streams of events are open, half of OPSIN_MAX_CONNECTIONS"
            raise Problem(Kind.TOO_MANY_READERS, detail, retry_after=RETRY_AFTER)
        if client and self._of_client[client] >= self._most_of_one:
            detail = f"{client} reads {self._most_of_one} streams of events, a quarter of OPSIN_MAX_CONNECTIONS"
            raise Problem(Kind.TOO_MANY_READERS, detail, retry_after=RETRY_AFTER)

    async def _look_forever(self) -> None:
        while self._readers:
            try:
                await self._look()
                await asyncio.sleep(TICK_S)
            except RedisAway:
                await asyncio.sleep(PAUSE_WHILE_AWAY_S)
            except Exception:
                log.exception("reading events failed")
                await asyncio.sleep(PAUSE_WHILE_AWAY_S)

    async def _look(self) -> None:
        asking = [reader for reader in self._readers if reader.news.qsize() < MOST_UNREAD]
        answers = await self._records.events([(one.record, one.after) for one in asking])
        for reader, news in zip(asking, answers, strict=False):
            if reader not in self._readers:  # it has left meanwhile
                continue
            self._readers[reader] = self._readers.pop(reader)
            if isinstance(news, Happened) and news.events:
                reader.after = news.events[-1].number
            elif isinstance(news, Happened) and news.state in OPEN:
                continue
            reader.news.put_nowait(news)
