"""A worker holds these while it works on a job."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from server.queue import keys
from server.queue.messages import PRIORITY_DELAY_S, QueuedJob


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """An entry of the queue that this worker has taken and must finish, hand back or dead-letter. Its message may be large: then it is read
    later, which makes it a `Delivery`."""

    job_id: str
    gateway: str
    """The gateway that waits for the reply; empty for a part of a record."""
    stream: str
    entry_id: str
    alone: bool
    """Whether it was claimed from a dead worker: run it in a batch of its own, with nothing else in this worker."""
    added_ms: int
    """Time at which the job was queued first, on Redis' clock."""
    nbytes: int
    """The size of its message."""
    queued_at: float
    """`added_ms` in `time.monotonic()` of this worker."""
    pulled_at: float
    """`time.monotonic()` of this worker."""
    checked_at: float
    """Time of the latest check of deadline, cancellation and gateway; `queued_at` before the first."""

    @property
    def row(self) -> tuple[str, str, str, str]:
        """The fields of a `HeldRow`."""
        return self.stream, self.entry_id, self.job_id, self.gateway

    @property
    def is_of_record(self) -> bool:
        return keys.PART_OF_RECORD.fullmatch(self.job_id) is not None

    @property
    def bundle(self) -> str:
        return keys.StreamName.parse(self.stream).bundle

    @property
    def queue(self) -> str:
        return keys.StreamName.parse(self.stream).queue


_fields: attrgetter[tuple[Any, ...]] = attrgetter(*QueueEntry.__slots__)


@dataclass(frozen=True, slots=True)
class Delivery(QueueEntry):
    """A job that can be run."""

    job: QueuedJob
    due: float
    """Smaller is more urgent: `queued_at` plus the handicap of the priority, plus by how much it is behind others of its request."""

    @staticmethod
    def from_entry(entry: QueueEntry, job: QueuedJob) -> Delivery:
        return Delivery(*_fields(entry), job=job, due=entry.queued_at + PRIORITY_DELAY_S[job.priority] + job.behind_ms / 1000)  # type: ignore[misc]
