"""A worker holds these while it works on a job."""

from __future__ import annotations

from dataclasses import dataclass

from server.queue.messages import QueuedJob


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """An entry of the queue that this worker has taken and must finish, hand back or dead-letter. Its message may be large: then it is read
    later, which makes it a `Delivery`."""

    job_id: str
    gateway: str
    """The gateway that waits for the reply; empty for a part of a record."""
    stream: str
    bundle: str
    """`name@version`."""
    queue: str
    """`keys.queue` of the bundle and its content."""
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


@dataclass(frozen=True, slots=True)
class Delivery(QueueEntry):
    """A job that can be run."""

    job: QueuedJob
    due: float
    """Smaller is more urgent: `queued_at` plus the handicap of the priority, plus by how much it is behind others of its request."""
