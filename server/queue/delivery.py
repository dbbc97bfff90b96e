"""A worker holds these while it works on a job; the end of a job is written here for `finish.lua`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

from server.queue import keys
from server.queue.messages import HANDICAP_S, QueuedJob, Reply, encode
from server.queue.rows import Ended

NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """An entry of the queue that this worker has taken and must finish, hand back or dead-letter."""

    job_id: str
    gateway: str
    """The gateway that waits for the reply; empty for a part of a record."""
    stream: str
    entry_id: str
    alone: bool
    """It was claimed from a dead worker: run it in a batch of its own, with nothing else in this worker."""
    added_ms: int
    """When the job was queued first, on Redis' clock."""
    nbytes: int
    """The size of its message."""
    queued_at: float
    """`added_ms` in `time.monotonic()` of this worker."""
    pulled_at: float
    """`time.monotonic()` of this worker."""
    checked_at: float
    """When deadline, cancellation and gateway were last looked at; until then there was nothing to look at when it equals `queued_at`."""


_fields: Callable[[QueueEntry], tuple[str, str, str, str, bool, int, int, float, float, float]] = attrgetter(
    "job_id", "gateway", "stream", "entry_id", "alone", "added_ms", "nbytes", "queued_at", "pulled_at", "checked_at"
)


@dataclass(frozen=True, slots=True)
class Beside(QueueEntry):
    """A job whose large message has not been read yet."""

    @property
    def queue(self) -> str:
        name = keys.StreamName.of(self.stream)
        return keys.queue(name.bundle, name.digest)


@dataclass(frozen=True, slots=True)
class Delivery(QueueEntry):
    """A job that can be run."""

    job: QueuedJob
    queue: str
    due: float
    """Smaller is more urgent: `queued_at` plus the handicap of the priority."""

    @staticmethod
    def of(held: QueueEntry, job: QueuedJob) -> Delivery:
        queue, due = keys.queue(job.bundle, job.digest), held.queued_at + HANDICAP_S[job.priority]
        return Delivery(*_fields(held), job=job, queue=queue, due=due)

    @property
    def bundle(self) -> str:
        return self.job.bundle


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of one job, readable message or not."""

    held: QueueEntry
    reply: Reply | None
    """None: nobody waits for it."""
    dead_letter: str = ""
    """Why a copy goes to the dead-letter stream."""
    silent: bool = False
    """Leave it out of the statistics: its gateway sends it again."""

    @property
    def bundle(self) -> str:
        return keys.StreamName.of(self.held.stream).bundle

    @property
    def batch_size(self) -> int:
        timing = self.reply.timing if self.reply else None
        return timing.batch_size if timing else 0

    @property
    def message(self) -> bytes:
        """The reply as it travels."""
        return encode(self.reply) if self.reply else b""

    def row(self) -> Ended:
        held, reply = self.held, self.reply
        timing, failure = (reply.timing, reply.failure) if reply else (None, None)
        return Ended(
            stream=held.stream,
            entry=held.entry_id,
            job=held.job_id,
            gateway=held.gateway,
            added_ms=held.added_ms,
            dead_letter=self.dead_letter,
            outcome="" if self.silent else "success" if reply and not failure else "fail",
            batch_wait_ns=int(timing.batch_wait_ms * NS_PER_MS) if timing else 0,
            inference_ns=int(timing.inference_ms * NS_PER_MS) if timing else 0,
            worker_ns=int(timing.worker_ms * NS_PER_MS) if timing else 0,
            stored=reply.stored if reply else "",
            failure=failure.kind if failure else "",
            detail=failure.detail if failure else "",
        )
