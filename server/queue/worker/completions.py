"""How a worker lets go of jobs: it answers them, puts them aside, or gives them back."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import msgspec

from server.queue import keys
from server.queue.errors import RedisAway
from server.queue.messages import Failure, Progress, Reply, WorkerTiming
from server.queue.resp import PIECE_BYTES
from server.queue.script_rows import Advanced, Ended, HandedBack
from server.queue.worker import large_values
from server.queue.worker.connection import Link
from server.queue.worker.delivery import Delivery, QueueEntry

MOST_DEAD_LETTERS = 100
NS_PER_MS = 1_000_000
NO_BATCH = WorkerTiming(batch_wait_ms=0.0, inference_ms=0.0, worker_ms=0.0, batch_size=0)


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

    def row(self) -> Ended:
        held, reply, timing = self.held, self.reply, self.timing
        failure = reply.failure if reply else None
        return Ended(
            *held.row,
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


class Endings:
    def __init__(self, link: Link, worker_id: str) -> None:
        self._link = link
        self._id = worker_id
        self.held: set[tuple[str, str]] = set()
        """(stream, entry id) of what is in this worker's hands."""
        self._given_up: list[QueueEntry] = []

    def finish(self, results: Sequence[tuple[Delivery, Reply]]) -> list[bool]:
        """Answer jobs; one call per batch, as the statistics count calls. False: another worker was first, the result is dropped.

        Jobs whose answers could not be written within `patience` (RedisAway) are handed back at the next pull, to be run again.
        """
        with self.given_up_while_away([delivery for delivery, _ in results]):
            return self.end([Ending(delivery, self._stored(delivery, reply)) for delivery, reply in results])

    def dead_letter(self, delivery: Delivery, reason: str, kind: str = "worker-crashed") -> bool:
        """Answer 500 and keep a copy of the job in the `dead` stream. `kind`: `worker-crashed` or `model-error`."""
        with self.given_up_while_away([delivery]):
            return self.end([Ending(delivery, self.failed(delivery.job_id, kind, reason), reason)])[0]

    def end(self, endings: Sequence[Ending]) -> list[bool]:
        """One script call for each bundle: usually one."""
        ended: list[bool] = []
        for bundle, group in groupby(endings, key=lambda ending: ending.held.bundle):
            batch = list(group)
            arguments: list[Any] = [bundle, self._id, max(ending.timing.batch_size for ending in batch), MOST_DEAD_LETTERS]
            arguments.append(msgspec.msgpack.encode([ending.row() for ending in batch]))
            arguments += [msgspec.msgpack.encode(ending.reply) if ending.reply else b"" for ending in batch]
            ended += map(bool, self._link.patiently(lambda a=arguments: self._link.script("finish", *a)))  # type: ignore[misc]
        self.lose(endings)
        return ended

    def lose(self, endings: Sequence[Ending]) -> None:
        """They are in this worker's hands no more: what is still pending under its name is looked for."""
        self.held.difference_update((ending.held.stream, ending.held.entry_id) for ending in endings)

    def progress(self, reports: Sequence[tuple[Delivery, Progress]]) -> None:
        """Tell how far jobs have come, to whoever asked for it (`QueuedJob.progress`): once, since who misses a report hears the next one.

        Of jobs that others have taken over nothing is told. Raises RedisAway.
        """
        told = [(held, report) for held, report in reports if held.job.progress]
        if told:
            rows = [Advanced(*held.row, news.done, news.total, news.unit, bool(news.preview)) for held, news in told]
            self._link.script("progress", self._id, msgspec.msgpack.encode(rows), *(msgspec.msgpack.encode(report) for _, report in told))

    def give_up(self, held: Sequence[QueueEntry]) -> None:
        """Hand these back as soon as Redis is there."""
        self._given_up += held

    @contextmanager
    def given_up_while_away(self, held: Sequence[QueueEntry]) -> Iterator[None]:
        """These are given up where the block raises RedisAway: this worker may go on, and somebody runs them again."""
        try:
            yield
        except RedisAway:
            self.give_up(held)
            raise

    def hand_back(self, held: Sequence[QueueEntry]) -> None:
        with self.given_up_while_away(held):
            self._link.patiently(lambda: self.hand_back_at_once(held))

    def hand_back_at_once(self, held: Sequence[QueueEntry]) -> None:
        """Without patience. Raises RedisAway."""
        if not held:
            return
        rows = [HandedBack(*entry.row, entry.alone) for entry in sorted(held, key=lambda entry: entry.added_ms)]
        self._link.script("hand_back", self._id, msgspec.msgpack.encode(rows))
        self.held.difference_update((entry.stream, entry.entry_id) for entry in held)

    def hand_back_given_up(self) -> None:
        """Hand back what could not be finished while Redis was away: somebody runs it again. Raises RedisAway while it still is."""
        given_up, self._given_up = self._given_up, []
        with self.given_up_while_away(given_up):
            self.hand_back_at_once(given_up)

    def failed(self, job_id: str, kind: str, detail: str) -> Reply:
        return Reply(id=job_id, worker=self._id, failure=Failure(kind=kind, detail=detail))

    def _stored(self, delivery: Delivery, reply: Reply) -> Reply:
        """A large output is written in pieces, and the reply names it."""
        if sum(len(array.data) for array in reply.arrays.values()) <= PIECE_BYTES:
            return reply
        key = keys.stored(delivery.job.id, secrets.token_hex(4))
        large_values.write(self._link, key, msgspec.msgpack.encode(reply.arrays))
        return msgspec.structs.replace(reply, arrays={}, stored=key)
