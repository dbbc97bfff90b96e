"""What a worker holds while it works on a job, and how a job's end is written for `finish.lua`."""

from __future__ import annotations

from dataclasses import dataclass

from server.queue import keys
from server.queue.job import Job, Reply, encode

NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Delivery:
    """A job that this worker has taken and must finish, hand back or dead-letter."""

    job: Job
    stream: str
    entry_id: str
    alone: bool
    """It was claimed from a dead worker, or may have been: run it in a batch of its own."""
    pulled_at: float
    """`time.monotonic()` of this worker."""
    nbytes: int
    """As admitted to `queue:bytes`."""

    @property
    def bundle(self) -> str:
        return self.job.bundle


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of one job, readable message or not."""

    stream: str
    entry_id: str
    job_id: str
    gateway: str
    nbytes: int
    reply: Reply | None
    """None: nobody waits for it."""
    dead_letter: str = ""
    """Why a copy goes to the dead-letter stream."""
    silent: bool = False
    """Leave it out of the statistics: its gateway sends it again."""

    @staticmethod
    def of(delivery: Delivery, reply: Reply | None, dead_letter: str = "") -> Ending:
        job = delivery.job
        return Ending(delivery.stream, delivery.entry_id, job.id, job.gateway, delivery.nbytes, reply, dead_letter)

    @property
    def bundle(self) -> str:
        return keys.bundle_of(self.stream)

    @property
    def batch_size(self) -> int:
        timing = self.reply.timing if self.reply else None
        return timing.batch_size if timing else 0

    def arguments(self) -> tuple[str | bytes | int, ...]:
        """In the order of finish.lua."""
        timing = self.reply.timing if self.reply else None
        success = self.reply is not None and self.reply.failure is None
        return (
            self.stream,
            self.entry_id,
            self.job_id,
            self.gateway,
            self.nbytes,
            encode(self.reply) if self.reply else b"",
            self.dead_letter,
            "" if self.silent else "success" if success else "fail",
            int(timing.batch_wait_ms * NS_PER_MS) if timing else 0,
            int(timing.inference_ms * NS_PER_MS) if timing else 0,
            int(timing.worker_ms * NS_PER_MS) if timing else 0,
        )
