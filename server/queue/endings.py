"""How a worker lets go of jobs: it answers them, puts them aside, or gives them back."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import msgspec

from server.queue import keys, pieces
from server.queue.delivery import Beside, Delivery, Ending
from server.queue.errors import RedisAway
from server.queue.link import Link
from server.queue.messages import Failure, Progress, Reply, encode, encode_arrays
from server.queue.rows import Advanced, HandedBack

MOST_DEAD_LETTERS = 100


class Endings:
    def __init__(self, link: Link, worker_id: str) -> None:
        self._link = link
        self._id = worker_id
        self._held: set[tuple[str, str]] = set()
        self._given_up: list[Delivery | Beside] = []

    def hold(self, stream: str, entry_id: str) -> None:
        """From now on this entry is in the worker's hands."""
        self._held.add((stream, entry_id))

    @property
    def held(self) -> set[tuple[str, str]]:
        """(stream, entry id) of what is in this worker's hands, as of now."""
        return self._held.copy()

    def finish(self, results: Sequence[tuple[Delivery, Reply]]) -> list[bool]:
        deliveries = [delivery for delivery, _ in results]
        try:
            endings = [Ending(delivery, self._stored(delivery, reply)) for delivery, reply in results]
        except RedisAway:
            self.give_up(deliveries)
            raise
        return self._let_go(endings, deliveries)

    def dead_letter(self, delivery: Delivery, reason: str, kind: str) -> bool:
        return self._let_go([Ending(delivery, self.failed(delivery.job_id, kind, reason), reason)], [delivery])[0]

    def end(self, endings: Sequence[Ending]) -> list[bool]:
        """One script call for each bundle: usually one."""
        ended: list[bool] = []
        for bundle, group in groupby(endings, key=lambda ending: ending.bundle):
            batch = list(group)
            arguments: list[Any] = [bundle, self._id, max(ending.batch_size for ending in batch), MOST_DEAD_LETTERS]
            arguments += [msgspec.msgpack.encode([ending.row() for ending in batch]), *(ending.message for ending in batch)]
            ended += map(bool, self._link.patiently(lambda a=arguments: self._link.script("finish", *a)))  # type: ignore[misc]
        self.lose(endings)
        return ended

    def lose(self, endings: Sequence[Ending]) -> None:
        """They are in this worker's hands no more: what is still pending under its name is looked for."""
        self._held.difference_update((ending.held.stream, ending.held.entry_id) for ending in endings)

    def progress(self, reports: Sequence[tuple[Delivery, Progress]]) -> None:
        """Once: who misses a report hears the next one. Of jobs that others have taken over nothing is told. Raises RedisAway."""
        told = [(_advanced(held, report), encode(report)) for held, report in reports if held.job.progress]
        if told:
            self._link.script("progress", self._id, msgspec.msgpack.encode([row for row, _ in told]), *(message for _, message in told))

    def give_up(self, taken: Sequence[Delivery | Beside]) -> None:
        """Hand these back as soon as Redis is there."""
        self._given_up += taken

    def hand_back(self, deliveries: Sequence[Delivery | Beside]) -> None:
        if not deliveries:
            return
        try:
            self._link.patiently(lambda: self.hand_back_at_once(deliveries))
        except RedisAway:
            self.give_up(deliveries)  # this worker may go on
            raise

    def hand_back_at_once(self, deliveries: Sequence[Delivery | Beside]) -> None:
        """Without patience. Raises RedisAway."""
        rows = [HandedBack(held.stream, held.entry_id, held.alone) for held in sorted(deliveries, key=_age)]
        self._link.script("hand_back", self._id, msgspec.msgpack.encode(rows))
        self._held.difference_update((delivery.stream, delivery.entry_id) for delivery in deliveries)

    def hand_back_given_up(self) -> None:
        """Hand back what could not be finished while Redis was away: somebody runs it again. Raises RedisAway while it still is."""
        if not self._given_up:
            return
        given_up, self._given_up = self._given_up, []
        try:
            self.hand_back_at_once(given_up)
        except RedisAway:
            self._given_up += given_up
            raise

    def failed(self, job_id: str, kind: Any, detail: str) -> Reply:
        return Reply(id=job_id, worker=self._id, failure=Failure(kind=kind, detail=detail))

    def _stored(self, delivery: Delivery, reply: Reply) -> Reply:
        """A large output is written in pieces, and the reply names it."""
        if sum(len(array.data) for array in reply.arrays.values()) <= pieces.PIECE_BYTES:
            return reply
        key = keys.stored(delivery.job.id, secrets.token_hex(4))
        pieces.write(self._link, key, encode_arrays(reply.arrays))
        return msgspec.structs.replace(reply, arrays={}, stored=key)

    def _let_go(self, endings: Sequence[Ending], deliveries: Sequence[Delivery]) -> list[bool]:
        try:
            return self.end(endings)
        except RedisAway:
            self.give_up(deliveries)
            raise


def _advanced(held: Delivery, report: Progress) -> Advanced:
    return Advanced(held.stream, held.entry_id, held.job_id, held.gateway, report.done, report.total, report.unit, bool(report.preview))


def _age(delivery: Delivery | Beside) -> int:
    return delivery.added_ms
