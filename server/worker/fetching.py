"""Large messages are read beside the computing, one after the other, while jobs whose message came with them go on."""

from __future__ import annotations

from queue import SimpleQueue

from server.queue.delivery import Beside
from server.queue.errors import RedisAway
from server.queue.worker_side import WorkerQueue
from server.telemetry import logs
from server.worker.slots import Slots

log = logs.get(__name__)


class Fetching:
    """Jobs between their pull and their place in `Slots`, whose rooms count them: never more than one batch ahead."""

    def __init__(self, queue: WorkerQueue, slots: Slots) -> None:
        self._queue = queue
        self._slots = slots
        self._line: SimpleQueue[Beside | None] = SimpleQueue()
        self._unread: dict[tuple[str, str], Beside] = {}
        """By stream and entry id."""

    def put(self, jobs: list[Beside]) -> None:
        for job in jobs:
            self._unread[job.stream, job.entry_id] = job
            self._slots.fetching(job.queue, 1)
            self._line.put(job)

    def close(self) -> None:
        """Nothing more comes. It may be said again."""
        self._line.put(None)

    def unread(self) -> list[Beside]:
        """Those whose message has not been read."""
        return list(self._unread.values())

    def run(self) -> None:
        """Until `close`, and what came before it."""
        while (beside := self._line.get()) is not None:
            try:
                delivery = self._queue.fetch(beside)
            except RedisAway as away:
                log.error("payload not read: its job runs elsewhere", job=beside.job_id, reason=str(away))
                delivery = None
            if delivery is not None:
                self._slots.add([delivery])
            del self._unread[beside.stream, beside.entry_id]
            self._slots.fetching(beside.queue, -1)
        self._slots.intake_ended()
