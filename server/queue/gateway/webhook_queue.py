"""Ends of clients' jobs that somebody is to be told of: kept as they were, whatever becomes of the jobs, until that is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from server.queue.gateway.connection import AsyncLink
from server.queue.record import NAMES, Record

MOST_OF_HOST = 16
"""One host is told of so many ends at once by a gateway: where it hangs, others need not wait for it."""


class DueWebhook(NamedTuple):
    record: Record
    """It is as of the job's end."""
    url: str
    attempt: int
    """1 for the first."""

    @property
    def host(self) -> str:
        """Return the host with its port, as `claim_webhooks.lua` reads it."""
        return urlsplit(self.url).netloc


class Webhooks:
    """For one event loop. Everything raises RedisAway at once while Redis does not answer."""

    def __init__(self, link: AsyncLink) -> None:
        self._link = link

    async def claim(self, most: int, lease: float, held: Mapping[str, int]) -> tuple[list[DueWebhook], int]:
        """Return ends that are due, for so many seconds this gateway's, and how many were dropped since the last call: there were too many,
        or they cannot be read. held: host → how many the gateway is telling now."""
        asked = most, int(lease * 1000), MOST_OF_HOST, msgspec.msgpack.encode(held)
        dropped, *rows = await self._link.script("claim_webhooks", *asked, "webhook", *NAMES)
        due = []
        for id_, tries, (url, *values) in rows:
            try:
                due.append(DueWebhook(Record.of(id_.decode(), -1, values), url.decode(), tries))
            except (msgspec.ValidationError, UnicodeDecodeError, AttributeError, KeyError):
                # it would be due again and again, and all others with it
                await self._link.script("settle_webhook", id_, tries, "", "")
                dropped += 1
        return due, dropped

    async def settle(self, due: DueWebhook, again_after: float | None, gap: float = 0.0) -> None:
        """again_after: seconds after the job's end, None: it is over. gap: seconds from now where that has passed."""
        delay = "" if again_after is None else int(again_after * 1000)
        await self._link.script("settle_webhook", due.record.id, due.attempt, delay, int(gap * 1000))
