"""The gateway's end of the queue: admit jobs, wait for their replies, lose none. For one asyncio event loop."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from server.processes.supervisor_protocol import process_id
from server.queue.connect import FirstContact, connect_async
from server.queue.errors import RedisUnavailable
from server.queue.gateway.beat import Beat
from server.queue.gateway.connection import GatewayRedisLink
from server.queue.gateway.fleet import FleetReader
from server.queue.gateway.large_values import LargeValues
from server.queue.gateway.record_store import RecordStore
from server.queue.gateway.reply_inbox import ReplyInbox
from server.queue.gateway.reservations import Reservations
from server.queue.gateway.scene_store import SceneStore
from server.queue.gateway.status_reader import StatusReader
from server.queue.gateway.submitter import Submitter
from server.queue.gateway.vector_store import VectorStore
from server.queue.gateway.webhook_queue import WebhookQueue
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
    """Maximum age of the fleet and of the depths of the queue."""
    fresh_load: float = 0.05
    """Time for which a reservation may grow by what Redis has allowed."""


class Dispatcher:
    """Parts of the queue that share a connection. `await start()`, then use them from any number of coroutines, then `await close()`."""

    def __init__(self, url: str, settings: Settings, timings: DispatcherTimings | None = None, keyspace: Keyspace | None = None) -> None:
        self.id = process_id()
        """New for each start; names the reply stream."""
        timings = timings or DispatcherTimings()
        self.link = link = GatewayRedisLink(
            connect_async(url), keyspace or Keyspace(settings.key_prefix), settings.redis_grace, FirstContact(url)
        )
        large_values = LargeValues(link.resp)
        self.fleet = FleetReader(link, timings.news)
        self.status = StatusReader(link)
        self._inbox = ReplyInbox(link, large_values, self.id, lost_after=timings.lost_after)
        self.reservations = Reservations(link, settings, timings.fresh_load)
        self.submitter = Submitter(link, large_values, self._inbox, self.reservations)
        self.records = RecordStore(link, large_values, settings, self.submitter, self.reservations)
        self.beat = Beat(
            *(self.id, link, self._inbox, self.submitter, self.reservations, self.records),
            every=timings.beat,
            ttl=timings.gateway_ttl,
            max_age=timings.news,
        )
        self.scenes = SceneStore(link, large_values, settings)
        self.webhooks = WebhookQueue(link)
        self.vectors = VectorStore(link, large_values, settings)

    async def start(self) -> None:
        """Connect if Redis is there; if not, try again in the background."""
        with suppress(RedisUnavailable):
            await self.beat.join()
        self.link.spawn(self.beat.run_forever())
        self.link.spawn(self._inbox.read_forever())

    async def close(self) -> None:
        """Stop and sign off: workers drop what is still queued for this gateway."""
        with suppress(RedisUnavailable):
            await self.beat.refresh()  # writes what was counted
        await self.link.close()
        await self.beat.sign_off()
        await self.link.disconnect()
