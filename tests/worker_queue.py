"""The worker's end of the queue, with what a worker does in two threads as one call each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from server.queue import worker_side
from server.queue.delivery import Delivery


class WorkerQueue(worker_side.WorkerQueue):
    def pull(self, queues: Sequence[str], max_items: int, block_ms: int = 0, own: Mapping[str, int] | None = None) -> list[Delivery]:
        """As `take`, and read large messages."""
        taken = self.take(queues, max_items, block_ms, own)
        found = (job if isinstance(job, Delivery) else self.fetch(job) for job in taken)
        return [delivery for delivery in found if delivery is not None]

    def begin(self, deliveries: Sequence[Delivery], slot: int) -> list[Delivery]:
        """As `begin_soon`, and wait for what it tells."""
        return self.begin_soon(deliveries, slot)()
