"""What the threads of a worker tell each other about batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from server.queue.delivery import Delivery
from server.worker.bucket import Bucket

LEAD = 0.01
"""Seconds before the predicted end of a batch at which the next one is pulled and decoded: late enough that other workers could
take the jobs and that many have come, early enough that the device need not wait."""

POLL = 0.003
"""Seconds between two looks at the queue while there is something to run but the next batch is not full."""
LONG_BLOCK = 0.5
"""Seconds for which a worker waits at the queue."""
CROWDED_BLOCK = 0.03
"""The same while there is no room for more jobs of several steps: what waits there is not noticed."""


class Pull(NamedTuple):
    """How the receiver should look at the queue now."""

    items: int
    """Short jobs, over all their queues."""
    long: Mapping[str, int]
    """Jobs of several steps, by queue."""
    block: float
    """Seconds to wait for jobs: only where a slot is idle, else a job could land in a busy worker while another is free."""

    @property
    def useful(self) -> bool:
        return self.items > 0 or (bool(self.long) and any(self.long.values()))


@dataclass(eq=False)
class Running:
    """A batch in a slot."""

    jobs: list[Delivery]
    bucket: Bucket
    started: float
    """Monotonic seconds."""
    expected_end: float
    long: bool = False
    """Whether it is a step of jobs that take several."""
    disturbed: bool = False
    """Whether a batch and a step ran beside each other."""
    progressed: float = field(default=0.0)
    """When the slot last finished a part of it."""

    def __post_init__(self) -> None:
        self.progressed = self.started

    @property
    def look_from(self) -> float:
        """When to look for the jobs of the next batch."""
        return self.expected_end - LEAD


class Finish(NamedTuple):
    """What a slot does after a batch."""

    idle: bool
    """Whether no batch waits for it."""
    leaving: list[Delivery]
    """To be handed back: the worker drains, and these would not come to their end."""
