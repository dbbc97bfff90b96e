"""What a worker holds while it works on a job, and how a job's end is written for `finish.lua`."""

from __future__ import annotations

from dataclasses import dataclass

from server.queue import keys
from server.queue.job import HANDICAP_S, Job, Reply, encode
from server.queue.rows import Ended

NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Delivery:
    """A job that this worker has taken and must finish, hand back or dead-letter."""

    job: Job
    stream: str
    entry_id: str
    alone: bool
    """It was claimed from a dead worker: run it in a batch of its own, with nothing else in this worker."""
    added_ms: int
    """When the job was queued first, on Redis' clock."""
    queued_at: float
    """The same in `time.monotonic()` of this worker."""
    pulled_at: float
    """`time.monotonic()` of this worker."""
    checked_at: float
    """When deadline, cancellation and gateway were last looked at; until then there was nothing to look at when it equals `queued_at`."""
    nbytes: int
    """Of its message."""

    @property
    def bundle(self) -> str:
        return self.job.bundle

    @property
    def queue(self) -> str:
        return keys.queue(self.job.bundle, self.job.digest)

    @property
    def due(self) -> float:
        """Smaller is more urgent: `queued_at` plus the handicap of the priority."""
        return self.queued_at + HANDICAP_S[self.job.priority]


@dataclass(frozen=True, slots=True)
class Beside:
    """A job that this worker has taken and whose large message it has not read yet."""

    job_id: str
    gateway: str
    stream: str
    entry_id: str
    alone: bool
    added_ms: int
    nbytes: int
    queued_at: float
    pulled_at: float
    checked_at: float
    """These as in `Delivery`."""

    @property
    def queue(self) -> str:
        name = keys.StreamName.of(self.stream)
        return keys.queue(name.bundle, name.digest)

    def delivery(self, job: Job) -> Delivery:
        return Delivery(
            job=job,
            stream=self.stream,
            entry_id=self.entry_id,
            alone=self.alone,
            added_ms=self.added_ms,
            queued_at=self.queued_at,
            pulled_at=self.pulled_at,
            checked_at=self.checked_at,
            nbytes=self.nbytes,
        )

    def ending(self, reply: Reply | None, *, silent: bool = False) -> Ending:
        return Ending(self.stream, self.entry_id, self.job_id, self.gateway, self.added_ms, reply, silent=silent)


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of one job, readable message or not."""

    stream: str
    entry_id: str
    job_id: str
    gateway: str
    added_ms: int
    reply: Reply | None
    """None: nobody waits for it."""
    dead_letter: str = ""
    """Why a copy goes to the dead-letter stream."""
    silent: bool = False
    """Leave it out of the statistics: its gateway sends it again."""

    @staticmethod
    def of(delivery: Delivery, reply: Reply | None, dead_letter: str = "", *, silent: bool = False) -> Ending:
        job, held = delivery.job, delivery
        return Ending(held.stream, held.entry_id, job.id, job.gateway, held.added_ms, reply, dead_letter, silent)

    @property
    def bundle(self) -> str:
        return keys.StreamName.of(self.stream).bundle

    @property
    def batch_size(self) -> int:
        timing = self.reply.timing if self.reply else None
        return timing.batch_size if timing else 0

    @property
    def message(self) -> bytes:
        """The reply as it travels."""
        return encode(self.reply) if self.reply else b""

    def row(self) -> Ended:
        timing = self.reply.timing if self.reply else None
        failure = self.reply.failure if self.reply else None
        success = self.reply is not None and self.reply.failure is None
        return Ended(
            stream=self.stream,
            entry=self.entry_id,
            job=self.job_id,
            gateway=self.gateway,
            added_ms=self.added_ms,
            dead_letter=self.dead_letter,
            outcome="" if self.silent else "success" if success else "fail",
            batch_wait_ns=int(timing.batch_wait_ms * NS_PER_MS) if timing else 0,
            inference_ns=int(timing.inference_ms * NS_PER_MS) if timing else 0,
            worker_ns=int(timing.worker_ms * NS_PER_MS) if timing else 0,
            stored=self.reply.stored if self.reply else "",
            failure=failure.kind if failure else "",
            detail=failure.detail if failure else "",
        )
