"""The names of everything the queue keeps in Redis. The Lua scripts spell the same names; docs/queue.md explains them.

Names of a cell begin with its `Keyspace`; messages, entries and scripts' arguments hold them without it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from server.queue.messages import PRIORITIES, Priority

if TYPE_CHECKING:
    from server.settings import Settings

PART_OF_RECORD = re.compile(r"[0-9A-Fa-f]+-[0-9A-Fa-f]+-[0-9]+")
"""Ids of jobs that stand for a part of a record."""
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{32}|[0-9a-f]{34}")
"""Ids of records and of scenes."""
GROUP = "workers"
"""Consumer group of every work stream; its consumers are named by worker id."""

SERVICE = "s"
"""Stands for the cell in names of the whole service."""
CELL = "cell"
"""The number of the cell that this Redis belongs to."""
BACK = ":back"
QUEUES = "queues"
WORKERS = "workers"
GATEWAYS = "gateways"
REPOSITORY = "repository"
REVISION = "repository:revision"
"""Counts the changes of the repository."""
KNOWN = "known"
"""Digests of what was served in the last days, by when it was served last."""
DEAD = "dead"
RESTARTS = "restarts"
"""Why workers were restarted → how often, a hash that supervisors write."""


@dataclass(frozen=True)
class Keyspace:
    """The keys of one cell. Several services may share a Redis by prefix. Braces put a cell's keys into one slot of a Cluster."""

    prefix: str = "opsin:"
    cell: int = 0

    @staticmethod
    def from_settings(settings: Settings) -> Keyspace:
        return Keyspace(settings.key_prefix, settings.cell)

    @property
    def digits(self) -> str:
        """Ids of the cell's records and scenes begin with these two hexadecimal digits."""
        return f"{self.cell:02x}"

    def name(self, key: str) -> str:
        """Return the full name of a key of this cell; of the empty one the prefix of all."""
        return f"{self.prefix}{{{self.cell}}}:{key}"

    def service(self, key: str) -> str:
        """Return the full name of a key of the whole service."""
        return f"{self.prefix}{{{SERVICE}}}:{key}"


def cell_of(id_: str) -> int | None:
    """Return the cell that the id of a record or scene names; None for an id that is not valid."""
    return int(id_[:2], 16) if _ID.fullmatch(id_) else None


def queue(bundle: str, digest: str) -> str:
    """`<name>@<version>:<12 of the digest>`: what a worker serves. Another content under the same name and version has another queue."""
    return f"{bundle}:{digest[:12]}"


def stream(queue_name: str, priority: Priority) -> str:
    return f"queue:{queue_name}:{priority}"


def streams(queue_name: str) -> list[str]:
    """Return the work streams of a queue, the most urgent priority first: each, and that of jobs that workers returned."""
    return [key + suffix for priority in PRIORITIES for key in (stream(queue_name, priority),) for suffix in ("", BACK)]


class StreamName(NamedTuple):
    """The parts of a work stream's name."""

    bundle: str
    queue: str
    priority: Priority

    @staticmethod
    @lru_cache(maxsize=1024)
    def parse(stream_key: str) -> StreamName:
        """Parse the name of a work stream. Raises ValueError for other names."""
        _, bundle, digest, priority = stream_key.removesuffix(BACK).split(":")
        if priority not in PRIORITIES:
            raise ValueError(f"{stream_key!r}: {priority!r} is not a priority")
        return StreamName(bundle, queue(bundle, digest), priority)


def _key_of(kind: str) -> Callable[[str], str]:
    return lambda id_: f"{kind}:{id_}"


replies = _key_of("replies")
"""Each of these makes the name of a key from an id."""
gateway = _key_of("gw")
worker = _key_of("worker")
job = _key_of("job")
cancel = _key_of("cancel")
blob = _key_of("blob")
deaths = _key_of("deaths")
suspects = _key_of("suspects")
stage = _key_of("stage")
record = _key_of("record")
result = _key_of("result")
events = _key_of("events")
scene = _key_of("scene")
vector = _key_of("vector")
spec = _key_of("spec")
statistics = _key_of("stats")


def output(job_id: str, attempt: str) -> str:
    """Return the key of the large output of one attempt at a job."""
    return f"out:{job_id}:{attempt}"


def result_arrays(job_id: str) -> str:
    """Return the key of the arrays of a result, if they are large."""
    return f"result:{job_id}:arrays"
