"""Captions whose likeness to the labels is known, and what a curator makes of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from training.curation import Curation, Curator

COUNT = 50


class Numbered:
    """Caption n is the single token n, and a label is a number."""

    def __init__(self, count: int = COUNT) -> None:
        self._count = count
        self.read_ids: list[int] = []

    def __len__(self) -> int:
        return self._count

    def read(self, ids: Tensor) -> Tensor:
        self.read_ids += ids.tolist()
        return ids.unsqueeze(1)

    def tokenise(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[int(text)] for text in texts])


def describe(words: Tensor) -> Tensor:
    """A caption's direction in the plane, by its number."""
    angle = words[:, 0].double() * 0.7
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def curator(*, threshold: float = 0.8, warm_up: int = 0, pool: int = 7) -> Curator:
    return Curator(Curation(target=0, threshold=threshold, min_ratio=None), [("0",), ("3", "5")], pool=pool, warm_up=warm_up, seed=4)


def curate_rounds() -> Tensor:
    """The choices of three rounds, joined."""
    own, captions = curator(), Numbered()
    return torch.cat([own.choose(number, captions, 6, describe) for number in range(3)])
