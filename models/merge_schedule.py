"""Merge schedules: the number of tokens that merge in each block. Imports no torch: gateways read and check them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_MERGED_TOKENS = 65_536
"""Maximum of r: no block has so many tokens that more could merge."""


@dataclass(frozen=True)
class MergeSchedule:
    """A merge schedule of ToMe (section 3.2 and appendix of arXiv 2210.09461).

    Exactly one of two forms: `per_block` lists r for the first blocks (the rest merge nothing); otherwise `r` tokens on
    average per block, changing linearly with `inflection` in [-1, 1]: -1 falls from 2r to 0, 0 is constant, +1 rises from 0 to 2r.
    """

    r: int = 0
    inflection: float = 0.0
    per_block: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not -1.0 <= self.inflection <= 1.0:
            raise ValueError(f"inflection: {self.inflection} is outside [-1, 1]")

    @staticmethod
    def off() -> MergeSchedule:
        return MergeSchedule()

    @staticmethod
    def constant(r: int) -> MergeSchedule:
        return MergeSchedule(r=r)

    @staticmethod
    def linear(r: int, inflection: float) -> MergeSchedule:
        return MergeSchedule(r=r, inflection=inflection)

    @staticmethod
    def from_list(per_block: Sequence[int]) -> MergeSchedule:
        return MergeSchedule(per_block=tuple(per_block))

    @staticmethod
    def parse(value: object) -> MergeSchedule:
        """Parse the JSON form: an integer, a list of integers, or `{"r": 16, "inflection": -1}`. Raises ValueError."""
        if isinstance(value, MergeSchedule):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return MergeSchedule.constant(value)
        if isinstance(value, Mapping) and set(value) <= {"r", "inflection"} and isinstance(value.get("r"), int):
            return MergeSchedule.linear(value["r"], float(value.get("inflection", 0.0)))
        if isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(r, int) for r in value):
            return MergeSchedule.from_list(value)
        raise ValueError(f'a merge schedule is an integer, a list of integers or {{"r": …, "inflection": …}}, not {value!r}')

    def to_json(self) -> int | list[int] | dict[str, float]:
        if self.per_block is not None:
            return list(self.per_block)
        return {"r": self.r, "inflection": self.inflection} if self.inflection else self.r

    def expand(self, depth: int) -> tuple[int, ...]:
        """Return r of every block, from the first on. Values of 0 or less merge nothing."""
        if self.per_block is not None:
            return (self.per_block + (0,) * depth)[:depth]
        low = int(self.r * (1 - self.inflection))
        high = 2 * self.r - low
        step = (high - low) / (depth - 1) if depth > 1 else 0.0
        return tuple(int(low + step * block) for block in range(depth))

    def token_counts(self, tokens: int, depth: int, protected: int) -> tuple[int, ...]:
        """Return the number of tokens after every block: at most half of the unprotected tokens merge in one block."""
        counts = []
        for r in self.expand(depth):
            tokens -= max(0, min(r, (tokens - protected) // 2))
            counts.append(tokens)
        return tuple(counts)
