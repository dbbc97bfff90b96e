"""The state of the service and what has happened lately, over all gateways and workers: counted in Redis, read by whoever shows it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from server.queue import keys
from server.queue.gateway.connection import AsyncLink
from server.queue.gateway.quotas import QueueDepth, depths
from server.queue.messages import Priority
from server.queue.record import RECORD_BYTES, JobProgress, RecordsLoad, rfc3339

STEP_S = 5
"""As `parts/history.lua` says."""
STEPS = 15 * 60 // STEP_S
MOST_LETTERS = 20
MOST_ONGOING = 20
NUMBER = re.compile(rb"-?\d{1,18}")


class StatusQueue(msgspec.Struct, frozen=True):
    """Unfinished jobs of one bundle and priority; `running` ones are in a worker's hands."""

    bundle: str
    priority: Priority
    waiting: int
    running: int
    oldest_s: float


class StatusLongJob(msgspec.Struct, frozen=True):
    """An asynchronous job that has not ended. `age_s`: since it was accepted; `running_s`: since a worker took it, null before;
    `progress`: null before the first step ends."""

    task: str
    bundle: str
    state: str
    age_s: float
    running_s: float | None
    progress: JobProgress | None


class DeadLetter(msgspec.Struct, frozen=True):
    """A job that was given up."""

    time: str
    bundle: str
    reason: str


@dataclass(frozen=True)
class Lately:
    """The queue's view of the service at one moment."""

    now_ms: int
    gateways: int
    """Those that live."""
    queue: list[StatusQueue]
    steps: list[Mapping[str, int]]
    """Counts of each complete step, the oldest first: STEPS of them."""
    letters: list[DeadLetter]
    """The latest first."""
    records: RecordsLoad
    ongoing: list[StatusLongJob]
    """Clients' jobs that have not ended, the oldest first."""


class StatusReader:
    """Raises RedisAway at once while Redis does not answer."""

    def __init__(self, link: AsyncLink) -> None:
        self._link = link

    async def read(self, steps: int = STEPS, letters: int = MOST_LETTERS, ongoing: int = MOST_ONGOING) -> Lately:
        """With so many steps of the history, dead letters and clients' jobs at most."""
        answer = await self._link.script("status", steps, letters, ongoing)
        now_ms, gateways, streams, history, dead, queued, running, kept, totals, ended, oldest = answer
        return Lately(
            now_ms,
            gateways,
            _queue(depths(now_ms, streams)),
            [_counts(flat) for flat in history],
            [_letter(*(field.decode(errors="replace") for field in letter)) for letter in dead],
            _records(queued, running, kept, _counts(totals), _counts(ended)),
            [_long_job(now_ms, *(value.decode(errors="replace") if value else "" for value in row)) for row in oldest],
        )

    async def statistics(self, bundle: str) -> dict[str, int]:
        """Cumulative, over all workers and gateways, as counted when jobs end; empty before the first.

        `success`, `fail`, `queue`, `compute_input`, `compute_infer`, `compute_output`, each with `_count` and `_ns`; `inference_count`,
        `execution_count`, `last_inference` (Unix ms), and for each batch size that ran `batch:<n>:count` and `batch:<n>:compute_*_ns`.
        """
        await self.read(0, 0, 0)  # which adds up what has ended until now
        return _counts(await self._link.command("HGETALL", self._link.name(keys.statistics(bundle))))

    async def restarts(self) -> dict[str, int]:
        """How often supervisors have restarted a worker, by reason."""
        return _counts(await self._link.command("HGETALL", self._link.service_name(keys.RESTARTS)))


def _counts(flat: Sequence[bytes]) -> dict[str, int]:
    """Read what a script or a hash tells as {name, count}…"""
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return {name.decode(errors="replace"): int(count) for name, count in pairs if NUMBER.fullmatch(count)}  # others are somebody else's


def _queue(depth: Mapping[tuple[str, Priority], QueueDepth]) -> list[StatusQueue]:
    return [
        StatusQueue(bundle, priority, max(0, queue.items - queue.running), queue.running, queue.oldest_age_s)
        for (bundle, priority), queue in sorted(depth.items())
        if queue.items
    ]


def _records(queued: int, running: int, kept: int, totals: dict[str, int], ended: dict[str, int]) -> RecordsLoad:
    nbytes = totals.pop("bytes", 0) + RECORD_BYTES * kept
    counts = {"queued": queued, "running": running, **totals}
    return RecordsLoad({state: count for state, count in counts.items() if count}, ended, nbytes)


def _letter(entry: str, stream: str, reason: str) -> DeadLetter:
    try:
        bundle = keys.StreamName.of(stream).bundle
    except ValueError:
        bundle = ""
    return DeadLetter(rfc3339(int(entry.partition("-")[0])), bundle, reason)


def _long_job(
    now_ms: int, task: str, bundle: str, state: str, created: str, started: str, done: str, total: str, unit: str
) -> StatusLongJob:
    progress = JobProgress(int(done), int(total), unit) if unit else None
    age_s, running_s = (round(max(0.0, now_ms - float(since)) / 1000, 1) if since else None for since in (created, started))
    return StatusLongJob(task, bundle, state, age_s or 0.0, running_s, progress)
