"""One worker's end of the queue. Synchronous and thread-safe."""

from __future__ import annotations

from server.queue.keys import Keyspace
from server.queue.messages import WORKER_FORMS
from server.queue.worker.ack import Acks
from server.queue.worker.connection import WorkerRedisLink, WorkerTimings
from server.queue.worker.lease import Leases
from server.queue.worker.liveness import Liveness


class WorkerQueue:
    """Parts of the queue that share a connection. Its id names the consumer and `worker:<id>`; a new process takes a new id."""

    def __init__(
        self, url: str, worker_id: str, timings: WorkerTimings | None = None, forms: str = WORKER_FORMS, keyspace: Keyspace | None = None
    ) -> None:
        """`forms`: the forms of messages that it understands (`QueuedJob.needs`)."""
        self.id = worker_id
        self.link = WorkerRedisLink(url, keyspace or Keyspace(), timings or WorkerTimings())
        self.acks = Acks(self.link, worker_id)
        self.leases = Leases(self.link, worker_id, self.acks, frozenset(forms.split()))
        self.liveness = Liveness(self.link, worker_id, self.leases)

    def close(self) -> None:
        self.link.close()
