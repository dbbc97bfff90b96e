"""A worker holds these while it works on a job; the end of a job is written here for `finish.lua`."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from server.queue import keys
from server.queue.messages import HANDICAP_S, QueuedJob, Reply, WorkerTiming, encode
from server.queue.rows import Ended

NS_PER_MS = 1_000_000
NO_BATCH = WorkerTiming(batch_wait_ms=0.0, inference_ms=0.0, worker_ms=0.0, batch_size=0)


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

    @property
    def bundle(self) -> str:
        return keys.StreamName.of(self.stream).bundle

    @property
    def queue(self) -> str:
        return keys.StreamName.of(self.stream).queue


_fields: attrgetter[tuple[Any, ...]] = attrgetter(*QueueEntry.__slots__)


@dataclass(frozen=True, slots=True)
class Delivery(QueueEntry):
    """A job that can be run."""

    job: QueuedJob
    due: float
    """Smaller is more urgent: `queued_at` plus the handicap of the priority."""

    @staticmethod
    def of(held: QueueEntry, job: QueuedJob) -> Delivery:
        return Delivery(*_fields(held), job=job, due=held.queued_at + HANDICAP_S[job.priority])  # type: ignore[misc]


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
    def timing(self) -> WorkerTiming:
        return (self.reply and self.reply.timing) or NO_BATCH

    @property
    def message(self) -> bytes:
        """The reply as it travels."""
        return encode(self.reply) if self.reply else b""

    def row(self) -> Ended:
        held, reply, timing = self.held, self.reply, self.timing
        failure = reply.failure if reply else None
        return Ended(
            stream=held.stream,
            entry=held.entry_id,
            job=held.job_id,
            gateway=held.gateway,
            added_ms=held.added_ms,
            dead_letter=self.dead_letter,
            outcome="" if self.silent else "success" if reply and not failure else "fail",
            batch_wait_ns=int(timing.batch_wait_ms * NS_PER_MS),
            inference_ns=int(timing.inference_ms * NS_PER_MS),
            worker_ns=int(timing.worker_ms * NS_PER_MS),
            stored=reply.stored if reply else "",
            failure=failure.kind if failure else "",
            detail=failure.detail if failure else "",
        )
