"""Training samples. Randomness is a function of (seed, epoch, picture): a resumed run draws what an uninterrupted one would have drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset, Sampler

from models.bundle import Preprocess
from models.layers.forward import normalise
from training.data import distortions
from training.data.flags import Drawings

Batch = tuple[Tensor, Tensor]
"""Normalised pixels (B, 3, S, S) and labels (B,)."""


class Draw(NamedTuple):
    """One sample of one epoch."""

    picture: int
    epoch: int


def seed_for(seed: int, *position: int) -> int:
    """A 32-bit seed for a place in a run; neighbouring places get unrelated ones."""
    mixed = seed
    for number in position:
        mixed = (mixed * 6_364_136_223_846_793_005 + number + 1_442_695_040_888_963_407) % 2**64
    return (mixed ^ mixed >> 33) * 0xFF51AFD7ED558CCD % 2**64 >> 32


class DistortedFlags(Dataset[Batch]):
    """Artwork under distortions that never repeat. An epoch shows every drawing `renderings` times."""

    def __init__(self, drawings: Drawings, renderings: int, preprocess: Preprocess, clean: float, seed: int) -> None:
        self._drawings = drawings
        self._renderings = renderings
        self._preprocess = preprocess
        self._clean = clean
        self._seed = seed

    def __len__(self) -> int:
        return len(self._drawings) * self._renderings

    def __getitems__(self, draws: Sequence[Draw]) -> Batch:
        """A whole batch: the distortions are made for many pictures at a time."""
        chosen = torch.tensor([draw.picture % len(self._drawings) for draw in draws])
        generator = Generator().manual_seed(seed_for(self._seed, draws[0].epoch, draws[0].picture))
        pictures = distortions.render(self._drawings.artwork[chosen], self._preprocess.image_size, generator, self._clean)
        return normalise(pictures.permute(0, 2, 3, 1), self._preprocess, torch.float32), self._drawings.targets[chosen]


class EpochBatches(Sampler[list[Draw]]):
    """Shuffled full batches of one epoch, from batch `first` on; what is left over waits for another epoch's order."""

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size = size
        self.batch_size = min(batch_size, size)
        self.seed = seed
        self.epoch = 0
        self.first = 0

    def __len__(self) -> int:
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[list[Draw]]:
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(seed_for(self.seed, self.epoch))).tolist()
        for batch in range(self.first, len(self)):
            yield [Draw(index, self.epoch) for index in order[batch * self.batch_size : (batch + 1) * self.batch_size]]
