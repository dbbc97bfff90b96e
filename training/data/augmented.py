"""Training samples. Randomness is a function of (seed, epoch, index): a resumed run draws what an uninterrupted one would have drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from accelerate.utils import set_seed
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from models.bundle import Preprocess
from training.data.pictures import Pixels
from training.recipe import Augmentation


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


class AugmentedPictures(Dataset[tuple[Tensor, int]]):
    def __init__(
        self, pictures: Sequence[Pixels], targets: Sequence[int] | None, augmentation: Augmentation, preprocess: Preprocess, seed: int
    ) -> None:
        """targets: None where the objective needs no labels."""
        self._pictures = pictures
        self._targets = targets
        self._seed = seed
        self._transform = create_transform(
            input_size=preprocess.image_size,
            is_training=True,
            scale=augmentation.scale,
            hflip=augmentation.hflip,
            color_jitter=augmentation.color_jitter,
            auto_augment=augmentation.auto_augment,
            re_prob=augmentation.re_prob,
            re_mode="pixel",
            interpolation=preprocess.interpolation,
            mean=preprocess.mean,
            std=preprocess.std,
        )

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int]:
        # timm's transforms draw from the global generators of Python, numpy and torch.
        set_seed(seed_for(self._seed, draw.epoch, draw.picture))
        pixels: Tensor = self._transform(Image.fromarray(self._pictures[draw.picture]))
        return pixels, self._targets[draw.picture] if self._targets is not None else 0


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
