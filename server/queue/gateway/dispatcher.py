"""The gateway's end of the queue: admit jobs, wait for their replies, lose none. For one asyncio event loop."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from server.processes.supervisor_protocol import process_id
from server.queue.connect import connect_async
from server.queue.errors import RedisAway
from server.queue.first_contact import FirstContact
from server.queue.gateway.beat import Beat
from server.queue.gateway.connection import AsyncLink
from server.queue.gateway.fleet import FleetReader
from server.queue.gateway.large_values import Freight
from server.queue.gateway.record_store import Records
from server.queue.gateway.reply_inbox import Inbox
from server.queue.gateway.reservations import Reservations
from server.queue.gateway.scene_store import Scenes
from server.queue.gateway.status_reader import StatusReader
from server.queue.gateway.submitter import Submitter
from server.queue.gateway.vector_store import Vectors
from server.queue.gateway.webhook_queue import Webhooks
from server.queue.keys import Keyspace
from server.settings import Settings


@dataclass(frozen=True)
class DispatcherTimings:
    """Seconds; the defaults are the service's contract, tests shorten them."""

    beat: float = 1.0
    gateway_ttl: float = 5.0
    lost_after: float = 2.0
    """An unanswered job this old is looked for."""
    news: float = 0.5
    """How old the fleet and the depths of the queue may be that are read."""
    fresh_load: float = 0.05
    """How long a reservation may grow by what Redis has allowed."""


class Dispatcher:
    """Makes, starts and closes the parts. `await start()`, then use them from any number of coroutines, then `await close()`."""

    def __init__(self, url: str, settings: Settings, timings: DispatcherTimings | None = None, keyspace: Keyspace | None = None) -> None:
        self.id = process_id()
        """New for each start; names the reply stream."""
        timings = timings or DispatcherTimings()
        self.link = link = AsyncLink(connect_async(url), keyspace or Keyspace(settings.key_prefix), settings.redis_grace, FirstContact(url))
        freight = Freight(link.wire)
        self.fleet = FleetReader(link, timings.news)
        self.status = StatusReader(link)
        self._inbox = Inbox(link, freight, self.id, lost_after=timings.lost_after)
        self.reservations = Reservations(link, settings, timings.fresh_load)
        self.submitter = Submitter(link, freight, self._inbox, self.reservations)
        self.records = Records(link, freight, settings, self.submitter, self.reservations)
        """Clients' jobs that outlive this gateway."""
        self.beat = Beat(
            *(self.id, link, self._inbox, self.submitter, self.reservations, self.records),
            every=timings.beat,
            ttl=timings.gateway_ttl,
            max_age=timings.news,
        )
        self.scenes = Scenes(link, freight, settings)
        self.webhooks = Webhooks(link)
        self.vectors = Vectors(link, freight, settings)

    async def start(self) -> None:
        """Connects if Redis is there; if not, it goes on trying in the background."""
        with suppress(RedisAway):
            await self.beat.join()
        self.link.spawn(self.beat.run_forever())
        self.link.spawn(self._inbox.read_forever())

    async def close(self) -> None:
        """Stop and sign off: workers drop what is still queued for this gateway."""
        with suppress(RedisAway):
            await self.beat.refresh()  # writes what was counted
        await self.link.close()
        await self.beat.sign_off()
        await self.link.disconnect()
