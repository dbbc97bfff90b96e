"""Ends of clients' jobs with a webhook, kept as they were, whatever becomes of the jobs, until it is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from server.queue.gateway.connection import GatewayRedisLink
from server.queue.record import NAMES, Record
from server.queue.script import Script

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
