"""How many jobs a worker takes of which queues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import msgspec

from server.queue import keys
from server.queue.messages import HANDICAP_S
from server.queue.rows import TakenRow


@dataclass(frozen=True)
class Capacity:
    """Places for jobs. Several queues may share a pool of places; those without place are left out."""

    places: tuple[int, ...]
    pool_of: Mapping[str, int]
    """Work stream → index of its pool."""

    @staticmethod
    def of(queues: Sequence[str], shared: int, own: Mapping[str, int]) -> Capacity:
        """One pool of `shared` places for all queues but those that have their `own`."""
        return _capacity(tuple(queues), shared, tuple(own.items()))

    @cached_property
    def smallest(self) -> int:
        return min(self.places[index] for index in self.pool_of.values())

    @cached_property
    def message(self) -> bytes:
        """As `pull.lua` reads it; Lua counts from 1."""
        streams = [(stream, handicap_ms(stream), index + 1) for stream, index in self.pool_of.items()]
        return msgspec.msgpack.encode((streams, self.places))

    def within(self, rows: Sequence[TakenRow]) -> list[TakenRow]:
        """The most urgent for which there is place."""
        left, chosen = list(self.places), []
        for row in sorted(rows, key=_due):
            index = self.pool_of[row.stream.decode()]
            if left[index] > 0:
                left[index] -= 1
                chosen.append(row)
        return chosen


@lru_cache(maxsize=4096)
def _capacity(queues: tuple[str, ...], shared: int, own: tuple[tuple[str, int], ...]) -> Capacity:
    """Kept: a worker pulls with the same few capacities again and again, hundreds of times a second."""
    places, pool_of, pool_of_queue = [shared], dict[str, int](), dict[str, int]()
    for queue, own_places in own:
        pool_of_queue[queue] = len(places)
        places.append(own_places)
    for queue in queues:
        index = pool_of_queue.get(queue, 0)
        if places[index] > 0:
            pool_of.update(dict.fromkeys(keys.streams(queue), index))
    return Capacity(tuple(places), pool_of)


@lru_cache(maxsize=1024)
def handicap_ms(stream: str) -> int:
    return int(HANDICAP_S[keys.StreamName.of(stream).priority] * 1000)


def _due(row: TakenRow) -> int:
    return row.added_ms + handicap_ms(row.stream.decode())
