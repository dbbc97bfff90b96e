"""How full the queues are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.queue import keys
from server.queue.fleet import Fleet
from server.queue.rows import StreamLoad


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

    @staticmethod
    def of(answer: Any) -> Load:
        now_ms, items, nbytes, streams = answer
        depths: dict[tuple[str, str], QueueDepth] = {}
        for stream in map(StreamLoad._make, streams):
            try:
                name = keys.StreamName.of(stream.stream.decode())
            except ValueError:  # anybody may have added to the set of queues
                continue
            age = max(0.0, (now_ms - stream.oldest_ms) / 1000) if stream.oldest_ms else 0.0
            known = depths.get((name.bundle, name.priority), QueueDepth(0, 0.0))  # several contents, and what was handed back
            depths[name.bundle, name.priority] = QueueDepth(known.items + stream.length, max(known.oldest_age_s, age))
        return Load(now_ms, items, nbytes, depths)

    def seconds_to_drain(self, fleet: Fleet, answered_per_second: float) -> int:
        """For Retry-After, at least 1: each bundle's queue over its announced throughput, or over this gateway's rate of answers."""
        seconds = 0.0
        for (bundle, _), depth in self.depths.items():
            rate = fleet.items_per_second(bundle) or answered_per_second
            seconds += depth.items / rate if rate > 0 else 0.0
        return max(1, math.ceil(seconds))
