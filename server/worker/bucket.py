"""Which jobs may share a batch."""

from __future__ import annotations

from dataclasses import dataclass

from server.queue.delivery import Delivery


@dataclass(frozen=True)
class Bucket:
    """Jobs of one bucket may share a batch."""

    queue: str
    """Of the bundle and its content (`keys.queue`)."""
    key: str
    alone: str = ""
    """The entry id of a job that must run by itself, while nothing else runs in this worker."""

    @staticmethod
    def of(delivery: Delivery) -> Bucket:
        return Bucket(delivery.queue, delivery.job.bucket, delivery.entry_id if delivery.alone else "")

    @property
    def bundle(self) -> str:
        """`name@version`."""
        return self.queue.partition(":")[0]
