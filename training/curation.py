"""Curation in training (CiT, arXiv 2301.02241): which captions the next steps learn from, by their likeness to what the model is to know.

Every so many steps each worker describes its labels and a stream of captions with the text tower as it is then, and keeps captions that
are like some label. Any objective that matches pictures with texts can be fed so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.pairs.common import class_features, unit


@dataclass(frozen=True)
class Curation:
    """The defaults are those of YFCC15M with the class names of ImageNet-1k."""

    target: int
    """Captions to keep: inner steps between two rounds, times the batch of a worker."""
    threshold: float = 0.55
    """A caption is kept if its likeness is above."""
    min_ratio: float | None = 0.003
    """Where a smaller share of a batch is kept, the best of it are kept instead, this share of it, rounded down; None: never."""
    unique: bool = True
    """Count captions that are drawn twice once."""


@dataclass(frozen=True)
class Likeness:
    """Of captions to the label that each is most like."""

    cosine: Tensor
    """(B,)."""
    label: Tensor
    """(B,) int64."""


@dataclass(frozen=True)
class Choice:
    """What is kept of one batch."""

    kept: Tensor
    """(B,) of bool."""
    fell_back: bool
    """Whether too few were above the threshold."""


@dataclass(frozen=True)
class Curated:
    collected: tuple[int, ...]
    """Captions in the order of the stream; more than the target by what the last batch had over."""
    seen: int
    choices: tuple[Choice, ...]
    """One for each batch drawn."""
    target: int

    @property
    def ids(self) -> tuple[int, ...]:
        """What the next steps learn from."""
        return self.collected[: self.target]

    @property
    def ratio(self) -> float:
        return len(self.collected) / self.seen if self.seen else 0.0


def label_features(texts: Tensor, members: Tensor) -> Tensor:
    """(labels, C), unit vectors. texts: (T, C), of any length; members: (labels, M) int64, each label's texts, -1 where it has fewer."""
    label, place = (members >= 0).nonzero(as_tuple=True)
    return class_features(texts[members[label, place]], label, len(members))


def likeness(captions: Tensor, labels: Tensor) -> Likeness:
    """captions: (B, C), of any length; labels: (labels, C), unit vectors."""
    cosine, label = (unit(captions) @ labels.T).max(dim=1)
    return Likeness(cosine, label)


def choose(cosine: Tensor, curation: Curation, *, keep_all: bool = False) -> Choice:
    """Decide on one batch, (B,). keep_all: for the first steps of training, which see everything."""
    kept = torch.ones_like(cosine, dtype=torch.bool) if keep_all else cosine > curation.threshold
    ratio = curation.min_ratio
    if keep_all or ratio is None or int(kept.sum()) / len(kept) >= ratio:
        return Choice(kept, fell_back=False)
    best = cosine.topk(int(ratio * len(cosine))).indices
    return Choice(torch.zeros_like(kept).index_fill_(0, best, True), fell_back=True)


def curate(stream: Iterable[tuple[Tensor, Tensor]], curation: Curation, *, keep_all: bool = False) -> Curated:
    """Draw batches of caption numbers (B,) and cosines (B,) until the target is reached, or the stream ends."""
    collected: list[int] = []
    known: set[int] = set()
    seen, choices = 0, []
    for ids, cosine in stream:
        choice = choose(cosine, curation, keep_all=keep_all)
        choices.append(choice)
        seen += len(ids)
        for caption in ids[choice.kept.to(ids.device)].tolist():
            if not (curation.unique and caption in known):
                known.add(caption)
                collected.append(caption)
        if len(collected) >= curation.target:
            break
    return Curated(tuple(collected), seen, tuple(choices), curation.target)
