"""How full the queues are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.queue import keys
from server.queue.rows import StreamLoad
from server.queue.shares import Held, owners


@dataclass(frozen=True)
class QueueDepth:
    """Unfinished jobs of one bundle and priority, waiting or running."""

    items: int
    oldest_age_s: float


@dataclass(frozen=True)
class Load:
    """The queue as the scripts report it."""

    now_ms: int
    items: int
    nbytes: int
    depths: Mapping[tuple[str, str], QueueDepth] = field(default_factory=dict)
    """(bundle, priority) → depth."""
    work_ms: int = 0
    """What the service takes for all of it."""
    owners: Mapping[str, Held] = field(default_factory=dict)

    @property
    def all(self) -> Held:
        return Held(self.items, self.nbytes, self.work_ms)

    @staticmethod
    def of(answer: Any) -> Load:
        now_ms, items, nbytes, streams, work_ms, flat = answer
        depths: dict[tuple[str, str], QueueDepth] = {}
        for stream in map(StreamLoad._make, streams):
            try:
                name = keys.StreamName.of(stream.stream.decode())
            except ValueError:  # anybody may have added to the set of queues
                continue
            age = max(0.0, (now_ms - stream.oldest_ms) / 1000) if stream.oldest_ms else 0.0
            known = depths.get((name.bundle, name.priority), QueueDepth(0, 0.0))  # several contents, and what was handed back
            depths[name.bundle, name.priority] = QueueDepth(known.items + stream.length, max(known.oldest_age_s, age))
        return Load(now_ms, items, nbytes, depths, work_ms, owners(flat))
