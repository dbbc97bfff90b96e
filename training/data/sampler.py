"""Which samples make a step, and what they draw: functions of (seed, epoch, sample), so that a resumed run and one on more processes see
what an uninterrupted run on one process would have seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from training.data.source import SampleSource, Sharded, UnreadableSample

_WINDOW = 8
"""Shards among which samples are shuffled: as many are open at a time."""
_TRIES = 100


def seed_for(seed: int, *position: int) -> int:
    """Return a 32-bit seed for a position in a run; neighbouring positions get unrelated ones."""
    return draw_of(seed, *position) >> 31


def draw_of(seed: int, *position: int) -> int:
    """Return a number of 63 bits for a position in a run, by the mixing of SplitMix64."""
    mixed = seed % 2**64
    for number in position:
        mixed = _mix((mixed + 0x9E3779B97F4A7C15 * (number + 1)) % 2**64)
    return _mix(mixed) >> 1


def _mix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


class SampleDraw(NamedTuple):
    """One sample of one epoch."""

    sample: int
    epoch: int


@dataclass(frozen=True)
class BatchShare:
    """The part of every step that one process takes: `batch_size` samples over all processes, `micro_batch` at a time."""

    batch_size: int
    rank: int = 0
    world: int = 1
    micro_batch: int | None = None

    @property
    def per_rank(self) -> int:
        return self.batch_size // self.world

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches of one step."""
        return -(-self.per_rank // self.micro_batch_size) if self.per_rank else 0

    @property
    def micro_batch_size(self) -> int:
        return min(self.micro_batch or self.per_rank, self.per_rank)


class SampleDataset(Dataset[dict[str, Tensor]]):
    """Micro-batches of a source. An unreadable sample gives way to the next one that can be read."""

    def __init__(self, source: SampleSource, seed: int) -> None:
        self._source = source
        self._seed = seed

    def __len__(self) -> int:
        return len(self._source)

    def __getitems__(self, draws: Sequence[SampleDraw]) -> tuple[dict[str, Tensor], list[str]]:
        """Return the batch, with `draw` (B,), and the reasons why samples were unreadable."""
        problems: list[str] = []
        samples = [self._sample(draw, problems) for draw in draws]
        return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}, problems

    def _sample(self, draw: SampleDraw, problems: list[str]) -> dict[str, Tensor]:
        for further in range(_TRIES):
            index = (draw.sample + further) % len(self._source)
            number = draw_of(self._seed, draw.epoch, index)
            try:
                return {**self._source.sample(index, number), "draw": torch.tensor(number)}
            except UnreadableSample as error:
                problems.append(str(error))
        raise UnreadableSample(f"{_TRIES} samples after one another, the last: {problems[-1]}")


class EpochBatches(Sampler[list[SampleDraw]]):
    """The micro-batches of one process in one epoch, from step `first` of the epoch on. What does not fill a step is left over, and
    waits for another epoch's order."""

    def __init__(self, source: SampleSource, share: BatchShare, seed: int) -> None:
        self._source = source
        self._share = share
        self._seed = seed
        self.epoch = 0
        self.first = 0
        self.chosen: Tensor | None = None
        """Samples of this epoch (N,) int64; None: all."""

    @property
    def steps(self) -> int:
        """Number of steps of this epoch."""
        return (len(self._source) if self.chosen is None else len(self.chosen)) // self._share.batch_size

    def __len__(self) -> int:
        return (self.steps - self.first) * self._share.micro_batches

    def __iter__(self) -> Iterator[list[SampleDraw]]:
        order, share = self._order(), self._share
        for step in range(self.first, self.steps):
            start = step * share.batch_size + share.rank * share.per_rank
            for micro_batch_size in torch.tensor_split(order[start : start + share.per_rank], share.micro_batches):
                yield [SampleDraw(index, self.epoch) for index in micro_batch_size.tolist()]

    def _order(self) -> Tensor:
        generator = torch.Generator().manual_seed(seed_for(self._seed, self.epoch))
        if self.chosen is not None:
            return self.chosen[torch.randperm(len(self.chosen), generator=generator)]
        if not isinstance(self._source, Sharded):
            return torch.randperm(len(self._source), generator=generator)
        shards = self._source.shards
        shuffled = [shards[number] for number in torch.randperm(len(shards), generator=generator).tolist()]
        windows = []
        for start in range(0, len(shuffled), _WINDOW):
            near = torch.cat([torch.arange(shard.start, shard.stop) for shard in shuffled[start : start + _WINDOW]])
            windows.append(near[torch.randperm(len(near), generator=generator)])
        return torch.cat(windows)
