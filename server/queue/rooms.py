"""How many jobs a worker takes of which queues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from server.queue import keys
from server.queue.job import HANDICAP_S
from server.queue.rows import TakenRow


@dataclass(frozen=True)
class Rooms:
    """Places for jobs. Several queues may share a room; those without place are left out."""

    sizes: tuple[int, ...]
    room_of: Mapping[str, int]
    """Work stream → index of its room."""

    @staticmethod
    def of(queues: Sequence[str], shared: int, own: Mapping[str, int]) -> Rooms:
        """One room of `shared` places for all queues but those that have their `own`."""
        return _rooms(tuple(queues), shared, tuple(own.items()))

    @cached_property
    def streams(self) -> list[str]:
        return list(self.room_of)

    @cached_property
    def smallest(self) -> int:
        return min(self.sizes[index] for index in self.room_of.values())

    @cached_property
    def arguments(self) -> tuple[int | str, ...]:
        """As `pull.lua` reads them; Lua counts from 1."""
        of_streams = [value for stream, index in self.room_of.items() for value in (stream, handicap_ms(stream), index + 1)]
        return (len(self.room_of), *of_streams, *self.sizes)

    def within(self, rows: Sequence[TakenRow]) -> list[TakenRow]:
        """The most urgent for which there is place."""
        left, chosen = list(self.sizes), []
        for row in sorted(rows, key=_due):
            index = self.room_of[row.stream.decode()]
            if left[index] > 0:
                left[index] -= 1
                chosen.append(row)
        return chosen


@lru_cache(maxsize=4096)
def _rooms(queues: tuple[str, ...], shared: int, own: tuple[tuple[str, int], ...]) -> Rooms:
    """Kept: a worker pulls with the same few rooms again and again, hundreds of times a second."""
    sizes, room_of, room_of_queue = [shared], dict[str, int](), dict[str, int]()
    for queue, places in own:
        room_of_queue[queue] = len(sizes)
        sizes.append(places)
    for queue in queues:
        index = room_of_queue.get(queue, 0)
        if sizes[index] > 0:
            room_of.update(dict.fromkeys(keys.streams(queue), index))
    return Rooms(tuple(sizes), room_of)


@lru_cache(maxsize=1024)
def handicap_ms(stream: str) -> int:
    return int(HANDICAP_S[keys.StreamName.of(stream).priority] * 1000)


def _due(row: TakenRow) -> int:
    return row.added_ms + handicap_ms(row.stream.decode())
