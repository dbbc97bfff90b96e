"""One worker's end of the queue. Synchronous and thread-safe."""

from __future__ import annotations

from server.queue.keys import Keyspace
from server.queue.messages import WORKER_FORMS
from server.queue.worker.ack import Acks
from server.queue.worker.connection import Link, WorkerTimings
from server.queue.worker.lease import Leases
from server.queue.worker.liveness import Liveness


class WorkerQueue:
    """Makes and closes the parts. Its id names the consumer and `worker:<id>`; a new process takes a new id."""

    def __init__(
        self, url: str, worker_id: str, timings: WorkerTimings | None = None, forms: str = WORKER_FORMS, keyspace: Keyspace | None = None
    ) -> None:
        """`forms`: what it understands of what jobs may need (`QueuedJob.needs`)."""
        self.id = worker_id
        self.link = Link(url, keyspace or Keyspace(), timings or WorkerTimings())
        self.acks = Acks(self.link, worker_id)
        self.leases = Leases(self.link, worker_id, self.acks, frozenset(forms.split()))
        self.liveness = Liveness(self.link, worker_id, self.leases)

    def close(self) -> None:
        self.link.close()
