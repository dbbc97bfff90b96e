"""Ends of clients' jobs that somebody is to be told of: kept as they were, whatever becomes of the jobs, until that is done."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from server.queue.async_link import AsyncLink
from server.queue.record import NAMES, Record


class DueWebhook(NamedTuple):
    record: Record
    """As of its end."""
    url: str
    attempt: int
    """1 for the first."""


class Webhooks:
    """For one event loop. Everything raises RedisAway at once while Redis does not answer."""

    def __init__(self, link: AsyncLink) -> None:
        self._link = link

    async def claim(self, most: int, lease: float) -> tuple[list[DueWebhook], int]:
        """Those that are due, for so many seconds this gateway's. And how many were dropped since the last call: there were too many, or
        they cannot be read."""
        dropped, *rows = await self._link.script("claim_webhooks", most, int(lease * 1000), "webhook", *NAMES)
        due = []
        for id_, tries, (url, *values) in rows:
            try:
                due.append(DueWebhook(Record.of(id_.decode(), -1, values), url.decode(), tries))
            except (
                msgspec.ValidationError,
                UnicodeDecodeError,
                AttributeError,
                KeyError,
            ):  # or it would be due again and again, with all others
                await self._link.script("settle_webhook", id_, tries, "", "")
                dropped += 1
        return due, dropped

    async def settle(self, due: DueWebhook, again_after: float | None, gap: float = 0.0) -> None:
        """again_after: seconds after the job's end, None: it is over. gap: seconds from now where that has passed."""
        delay = "" if again_after is None else int(again_after * 1000)
        await self._link.script("settle_webhook", due.record.id, due.attempt, delay, int(gap * 1000))
