"""A worker without threads, weights or a clock: batches of one bundle, whose arms take the seconds that a test names."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from server.worker.backends.learner import Arm, Learner, Schedule, Turn

Seconds = Callable[[int], float]
"""Time of a batch in seconds, by its size."""


@dataclass(frozen=True)
class SimulatedBatch:
    size: int
    turn: Turn
    seconds: float
    eager_s: float
    """Time that eager would have taken, in seconds."""


def simulate(
    learner: Learner,
    schedule: Schedule,
    seconds: Mapping[Arm, Seconds],
    sizes: Sequence[int],
    *,
    opened_at: Mapping[Arm, float] | None = None,
    noise: float = 0.0,
    seed: int = 0,
) -> Iterator[SimulatedBatch]:
    """Run a batch of each size. opened_at: seconds of work after which an arm is open, 0 unless given; noise: standard deviation of a
    batch's time, relative to it."""
    chance, clock, shapes = random.Random(seed), 0.0, set[tuple[Arm, int]]()
    for size in sizes:
        usable = [arm for arm in seconds if (opened_at or {}).get(arm, 0.0) <= clock]
        turn = learner.choose(schedule, size, usable)
        took = seconds[turn.arm](size) * max(0.5, chance.gauss(1.0, noise))
        learner.observe(schedule, turn, size, took, is_cold=(turn.arm, size) not in shapes)
        shapes.add((turn.arm, size))
        clock += took
        yield SimulatedBatch(size, turn, took, seconds["eager"](size))
