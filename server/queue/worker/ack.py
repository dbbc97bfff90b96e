"""The end of a worker's hold of jobs: it answers them, makes them dead letters, or returns them to the queue."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from server.queue import keys
from server.queue.connect import CHUNK_BYTES, RedisUnavailable
from server.queue.messages import Failure, Progress, Reply, WorkerTiming
from server.queue.script import BatchEnd, EndedRow, ProgressRow, ReturnedRow, Script
from server.queue.worker.connection import WorkerRedisLink
from server.queue.worker.delivery import Delivery, QueueEntry

FINISH, FINISH_RECORD = Script("finish", BatchEnd, list[int]), Script("finish_record", BatchEnd, list[int])
PROGRESS = Script("progress", tuple[str, list[ProgressRow]], bytes)
REQUEUE = Script("requeue", tuple[str, list[ReturnedRow]], bytes)
MAX_DEAD_LETTERS = 100
NS_PER_MS = 1_000_000
NO_TIMING = WorkerTiming(batch_wait_ms=0.0, inference_ms=0.0, worker_ms=0.0, batch_size=0)


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of one job, readable message or not."""

    entry: QueueEntry
    reply: Reply | None
    """None: no client waits for it."""
    dead_letter: str = ""
    """Why a copy goes to the dead-letter stream."""
    skip_statistics: bool = False
    """Whether its gateway sends it again."""

    @property
    def timing(self) -> WorkerTiming:
        return (self.reply and self.reply.timing) or NO_TIMING

    def row(self) -> EndedRow:
        entry, reply, timing = self.entry, self.reply, self.timing
        failure = reply.failure if reply else None
        return EndedRow(
            *_row_fields(entry),
            added_ms=entry.added_ms,
            dead_letter=self.dead_letter,
            outcome="" if self.skip_statistics else "success" if reply and not failure else "fail",
            batch_wait_ns=int(timing.batch_wait_ms * NS_PER_MS),
            inference_ns=int(timing.inference_ms * NS_PER_MS),
            worker_ns=int(timing.worker_ms * NS_PER_MS),
            stored=reply.stored if reply else "",
            failure=failure.kind if failure else "",
            detail=failure.detail if failure else "",
        )


def _row_fields(entry: QueueEntry) -> tuple[str, str, str, str]:
    """Return the fields of a `HeldRow`."""
    return entry.stream, entry.entry_id, entry.job_id, entry.gateway


class Acks:
    """`finish`, `dead_letter` and `return_to_queue` keep trying for the link's `retry_timeout`, since no other process has the results."""

    def __init__(self, link: WorkerRedisLink, worker_id: str) -> None:
        self._link = link
        self._id = worker_id
        self.held_entries: set[tuple[str, str]] = set()
        """(stream, entry id) of jobs that this worker holds."""
        self._deferred: list[QueueEntry] = []

    def finish(self, results: Sequence[tuple[Delivery, Reply]]) -> list[bool]:
        """Answer the jobs of a batch. False: another worker was first, the result is dropped.

        Jobs whose answers could not be written within `retry_timeout` (RedisUnavailable) are returned at the next pull, to be run again.
        """
        with self.return_later_if_unavailable([delivery for delivery, _ in results]):
            return self.end([Completion(delivery, self._store_large(delivery, reply)) for delivery, reply in results])

    def dead_letter(self, delivery: Delivery, reason: str, kind: str = "worker-crashed") -> bool:
        """Answer 500 and keep a copy of the job in the `dead` stream. `kind`: `worker-crashed` or `model-error`."""
        with self.return_later_if_unavailable([delivery]):
            return self.end([Completion(delivery, self.make_failure(delivery.job_id, kind, reason), reason)])[0]

    def end(self, completions: Sequence[Completion]) -> list[bool]:
        """Usually one call, as the statistics count batches: another one for each further bundle, and for jobs of records among those of
        gateways."""
        groups: dict[tuple[str, bool], list[int]] = {}
        for index, one in enumerate(completions):
            groups.setdefault((one.entry.bundle, keys.PART_OF_RECORD.fullmatch(one.entry.job_id) is not None), []).append(index)
        ended, counted = [False] * len(completions), set[str]()
        for (bundle, is_of_record), indices in groups.items():
            batch = [completions[index] for index in indices]
            size, rows = max(one.timing.batch_size for one in batch), [one.row() for one in batch]
            finished = BatchEnd(bundle, self._id, size, bundle in counted, MAX_DEAD_LETTERS, rows)
            replies = [msgspec.msgpack.encode(one.reply) if one.reply else b"" for one in batch]
            script = FINISH_RECORD if is_of_record else FINISH
            won = self._link.retry(lambda s=script, f=finished, r=replies: self._link.run(s, f, r))  # type: ignore[misc]
            for index, row, one in zip(indices, rows, won, strict=True):
                ended[index] = bool(one)
                if one and row.outcome == "success":
                    counted.add(bundle)
        self.drop_from_held([one.entry for one in completions])
        return ended

    def drop_from_held(self, entries: Sequence[QueueEntry]) -> None:
        """Hold these no longer: what is still pending under this worker's name is looked for."""
        self.held_entries.difference_update((entry.stream, entry.entry_id) for entry in entries)

    def progress(self, reports: Sequence[tuple[Delivery, Progress]]) -> None:
        """Report how far jobs have come to clients that follow them (`QueuedJob.progress`). Raises RedisUnavailable.

        It tries once: a client that misses a report gets the next one. Jobs that other workers have taken over are left out.
        """
        followed = [(delivery, report) for delivery, report in reports if delivery.job.progress]
        if followed:
            rows = [ProgressRow(*_row_fields(one), news.done, news.total, news.unit, bool(news.preview)) for one, news in followed]
            self._link.run(PROGRESS, (self._id, rows), [msgspec.msgpack.encode(report) for _, report in followed])

    def return_later(self, entries: Sequence[QueueEntry]) -> None:
        """Return these as soon as Redis is there."""
        self._deferred += entries

    @contextmanager
    def return_later_if_unavailable(self, entries: Sequence[QueueEntry]) -> Iterator[None]:
        """Return these later if the block raises RedisUnavailable: this worker may go on, and another one runs them again."""
        try:
            yield
        except RedisUnavailable:
            self.return_later(entries)
            raise

    def return_to_queue(self, entries: Sequence[QueueEntry]) -> None:
        with self.return_later_if_unavailable(entries):
            self._link.retry(lambda: self.return_now(entries))

    def return_now(self, entries: Sequence[QueueEntry]) -> None:
        """Try once. Raises RedisUnavailable."""
        if not entries:
            return
        rows = [ReturnedRow(*_row_fields(entry), entry.alone) for entry in sorted(entries, key=lambda entry: entry.added_ms)]
        self._link.run(REQUEUE, (self._id, rows))
        self.drop_from_held(entries)

    def return_deferred(self) -> None:
        """Return what could not be finished while Redis was unavailable: another worker runs it again. Raises RedisUnavailable."""
        deferred, self._deferred = self._deferred, []
        with self.return_later_if_unavailable(deferred):
            self.return_now(deferred)

    def make_failure(self, job_id: str, kind: str, detail: str) -> Reply:
        return Reply(id=job_id, worker=self._id, failure=Failure(kind=kind, detail=detail))

    def _store_large(self, delivery: Delivery, reply: Reply) -> Reply:
        """Write a large output in pieces, and name it in the reply."""
        if sum(len(array.data) for array in reply.arrays.values()) <= CHUNK_BYTES:
            return reply
        key = keys.output(delivery.job.id, secrets.token_hex(4))
        self._link.write_large(key, msgspec.msgpack.encode(reply.arrays))
        return msgspec.structs.replace(reply, arrays={}, stored=key)
