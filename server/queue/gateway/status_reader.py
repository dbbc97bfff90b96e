"""The state of the service and what has happened lately, over all gateways and workers: counted in Redis, read by pages and metrics."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from server.queue import keys
from server.queue.gateway.connection import GatewayRedisLink
from server.queue.messages import Priority
from server.queue.record import RECORD_BYTES, JobProgress, RecordsLoad, rfc3339
from server.queue.script import Script

STEP_S = 5
"""Length of a step of `parts/history.lua`."""
STEPS = 15 * 60 // STEP_S
MAX_DEAD_LETTERS = 20
MAX_OPEN_JOBS = 20
NUMBER = re.compile(rb"-?\d{1,18}")
MEMORY = {b"used_memory": "used", b"maxmemory": "limit"}
MEMORY_LINE = re.compile(rb"^(used_memory|maxmemory):(\d+)", re.MULTILINE)


class StatusQueue(msgspec.Struct, frozen=True):
    """Unfinished jobs of one bundle and priority; `running` ones are in a worker's hands."""

    bundle: str
    priority: Priority
    waiting: int
    running: int
    oldest_s: float

    @property
    def items(self) -> int:
        return self.waiting + self.running


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


class StreamLoad(msgspec.Struct, frozen=True, array_like=True):
    """Unfinished jobs of one work stream."""

    stream: bytes
    items: int
    oldest_ms: int
    """Time at which the oldest was queued; 0: unknown."""
    running: int = 0
    """Number of those that living workers hold, in the status."""


@dataclass(frozen=True)
class QueueSnapshot:
    """The queue's view of the service at one moment."""

    now_ms: int
    gateways: int
    queue: list[StatusQueue]
    steps: list[Mapping[str, int]]
    """Counts of each complete step, the oldest first: STEPS of them."""
    letters: list[DeadLetter]
    """The latest first."""
    records: RecordsLoad
    ongoing: list[StatusLongJob]
    """Clients' jobs that have not ended, the oldest first."""
    memory: Mapping[str, int]
    """Memory of Redis in bytes: `used`, and `limit` if it has one. Empty if its user may not read them."""
    waiting_for_worker: int
    """Number of requests that wait in gateways for a first worker."""


class StatusAnswer(msgspec.Struct, frozen=True, array_like=True):
    now_ms: int
    gateways: int
    streams: list[StreamLoad]
    history: list[list[bytes]]
    """{name, count}… of each step."""
    letters: list[list[bytes]]
    """{entry id, stream, reason} of each."""
    queued: int
    """Records, as are the next ones."""
    running: int
    kept_records: int
    totals: list[bytes]
    ended: list[bytes]
    oldest: list[list[bytes | None]]
    """Records that have not ended: {task, bundle, state, created ms, started ms, done, total, unit}; no ids, which are secrets."""
    memory: bytes
    """Answer of INFO; empty if it is not permitted."""
    waiting_for_worker: int


STATUS = Script("status", tuple[int, int, int], StatusAnswer)


class StatusReader:
    """Raises RedisUnavailable at once while Redis does not answer."""

    def __init__(self, link: GatewayRedisLink) -> None:
        self._link = link

    async def read(self, steps: int = STEPS, letters: int = MAX_DEAD_LETTERS, ongoing: int = MAX_OPEN_JOBS) -> QueueSnapshot:
        """Read so many steps of the history, dead letters and clients' jobs at most."""
        read = await self._link.run(STATUS, (steps, letters, ongoing))
        return QueueSnapshot(
            read.now_ms,
            read.gateways,
            [queue for queue in queues(read.now_ms, read.streams) if queue.items],
            [_counts(flat) for flat in read.history],
            [_letter(*(field.decode(errors="replace") for field in letter)) for letter in read.letters],
            _records(read.queued, read.running, read.kept_records, _counts(read.totals), _counts(read.ended)),
            [_long_job(read.now_ms, *(value.decode(errors="replace") if value else "" for value in row)) for row in read.oldest],
            {MEMORY[name]: int(nbytes) for name, nbytes in MEMORY_LINE.findall(read.memory) if int(nbytes)},
            read.waiting_for_worker,
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


def queues(now_ms: int, rows: Sequence[StreamLoad]) -> list[StatusQueue]:
    """Return the load by bundle and priority: several contents of a bundle, and what was handed back, count together."""
    found: dict[tuple[str, Priority], StatusQueue] = {}
    for row in rows:
        try:
            name = keys.StreamName.parse(row.stream.decode())
        except ValueError:  # other programs may have added to the set of queues
            continue
        age_s = max(0.0, (now_ms - row.oldest_ms) / 1000) if row.oldest_ms else 0.0
        before = found.get((name.bundle, name.priority), StatusQueue(name.bundle, name.priority, 0, 0, 0.0))
        waiting, running = before.waiting + max(0, row.items - row.running), before.running + row.running
        found[name.bundle, name.priority] = StatusQueue(name.bundle, name.priority, waiting, running, max(before.oldest_s, age_s))
    return [found[key] for key in sorted(found)]


def _counts(flat: Sequence[bytes]) -> dict[str, int]:
    """Parse {name, count} pairs."""
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return {name.decode(errors="replace"): int(count) for name, count in pairs if NUMBER.fullmatch(count)}  # ours


def _records(queued: int, running: int, kept_records: int, totals: dict[str, int], ended: dict[str, int]) -> RecordsLoad:
    nbytes = totals.pop("bytes", 0) + RECORD_BYTES * kept_records
    counts = {"queued": queued, "running": running, **totals}
    return RecordsLoad({state: count for state, count in counts.items() if count}, ended, nbytes)


def _letter(entry: str, stream: str, reason: str) -> DeadLetter:
    try:
        bundle = keys.StreamName.parse(stream).bundle
    except ValueError:
        bundle = ""
    return DeadLetter(rfc3339(int(entry.partition("-")[0])), bundle, reason)


def _long_job(
    now_ms: int, task: str, bundle: str, state: str, created: str, started: str, done: str, total: str, unit: str
) -> StatusLongJob:
    progress = JobProgress(int(done), int(total), unit) if unit else None
    age_s, running_s = (round(max(0.0, now_ms - float(since)) / 1000, 1) if since else None for since in (created, started))
    return StatusLongJob(task, bundle, state, age_s or 0.0, running_s, progress)
