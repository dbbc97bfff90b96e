"""Curation in training (CiT, arXiv 2301.02241): which captions the next steps learn from, by their likeness to what the model is to know.

Every so many steps each worker describes its labels and a stream of captions with the text tower as it is then, and keeps captions that
are like some label. Any objective that matches pictures with texts can be fed so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from models.systems.image_text.dual_encoder import class_features, unit_vectors
from training import collectives, random_draws


@dataclass(frozen=True)
class Curation:
    """The defaults are those of YFCC15M with the class names of ImageNet-1k."""

    target: int
    """Captions to keep: inner steps between two rounds, times the batch of a worker."""
    threshold: float = 0.55
    """A caption is kept if its likeness is above."""
    min_ratio: float | None = 0.003
    """Minimum fraction of a batch that is kept, rounded down: if fewer are above the threshold, the best ones. None: no minimum."""
    unique: bool = True
    """Count captions that are drawn twice once."""


@dataclass(frozen=True)
class LabelSimilarity:
    """Likeness of captions to the label that each is most like."""

    cosine: Tensor
    """(B,)."""
    label: Tensor
    """(B,) int64."""


@dataclass(frozen=True)
class CaptionSelection:
    """The captions that are kept of one batch."""

    mask: Tensor
    """(B,) of bool."""
    fell_back: bool
    """Whether too few were above the threshold."""


@dataclass(frozen=True)
class CurationResult:
    collected: tuple[int, ...]
    """Captions in the order of the stream; more than the target by what the last batch had over."""
    seen: int
    choices: tuple[CaptionSelection, ...]
    """One for each batch drawn."""
    target: int

    @property
    def ids(self) -> tuple[int, ...]:
        """Captions that the next steps learn from."""
        return self.collected[: self.target]

    @property
    def ratio(self) -> float:
        return len(self.collected) / self.seen if self.seen else 0.0


def label_features(texts: Tensor, members: Tensor) -> Tensor:
    """Average the texts of each label to unit vectors (labels, C).

    texts: (T, C), of any length; members: (labels, M) int64, indices of each label's texts, -1 if it has fewer.
    """
    label, place = (members >= 0).nonzero(as_tuple=True)
    return class_features(texts[members[label, place]], label, len(members))


def label_similarity(captions: Tensor, labels: Tensor) -> LabelSimilarity:
    """Compare captions (B, C), of any length, with labels (labels, C), unit vectors."""
    cosine, label = (unit_vectors(captions) @ labels.T).max(dim=1)
    return LabelSimilarity(cosine, label)


def choose(cosine: Tensor, curation: Curation, *, keep_all: bool = False) -> CaptionSelection:
    """Decide on one batch, (B,). keep_all: for the first steps of training, which see everything."""
    mask = torch.ones_like(cosine, dtype=torch.bool) if keep_all else cosine > curation.threshold
    ratio = curation.min_ratio
    if keep_all or ratio is None or int(mask.sum()) / len(mask) >= ratio:
        return CaptionSelection(mask, fell_back=False)
    best = cosine.topk(int(ratio * len(cosine))).indices
    return CaptionSelection(torch.zeros_like(mask).index_fill_(0, best, True), fell_back=True)


def curate(stream: Iterable[tuple[Tensor, Tensor]], curation: Curation, *, keep_all: bool = False) -> CurationResult:
    """Draw batches of caption numbers (B,) and cosines (B,) until the target is reached, or the stream ends."""
    collected: list[int] = []
    collected_ids: set[int] = set()
    seen, choices = 0, []
    for ids, cosine in stream:
        choice = choose(cosine, curation, keep_all=keep_all)
        choices.append(choice)
        seen += len(ids)
        for caption in ids[choice.mask.to(ids.device)].tolist():
            if not (curation.unique and caption in collected_ids):
                collected_ids.add(caption)
                collected.append(caption)
        if len(collected) >= curation.target:
            break
    return CurationResult(tuple(collected), seen, tuple(choices), curation.target)


class Captions(Protocol):
    """The captions of an image-text source, read without its images: token ids (n, N) int64, as its samples have them."""

    def __len__(self) -> int: ...

    def read(self, ids: Tensor) -> Tensor:
        """Return token ids (n, N) of the captions with these ids (n,)."""

    def tokenise(self, texts: Sequence[str]) -> Tensor: ...


Describe = Callable[[Tensor], Tensor]
"""Token ids (n, N) → (n, C), by the text tower as it is when asked."""


class Curator:
    """The outer loop: in each round, the captions of which the inner steps train. It reads on where the round before has stopped.

    Ranks read batches in turn and decide together, so that the choice does not depend on how many they are; the published code lets each
    rank curate for itself.
    """

    def __init__(self, curation: Curation, labels: Sequence[Sequence[str]], *, pool: int, warm_up: int = 0, seed: int = 0) -> None:
        """labels: the texts of each label; pool: captions in a batch of the stream; warm_up: rounds at first that keep every caption."""
        self.curation = curation
        self.pool = pool
        self.warm_up = warm_up
        self.seed = seed
        self._texts = [text for texts in labels for text in texts]
        self._members = _members([len(texts) for texts in labels])
        self._round, self._cursor, self._ids = -1, 0, torch.empty(0, dtype=torch.int64)
        self.ratio = 0.0
        """Share of the captions seen in the last round that were collected."""

    @torch.no_grad()
    def choose(self, number: int, captions: Captions, target: int, describe: Describe) -> Tensor:
        """Return ids (n,) int64 of the captions of a round, at most `target`; fewer if one pass over all captions does not yield as many.

        A round that this run or an interrupted one has already chosen is returned unchanged, although the weights differ by now.
        """
        if number == self._round:
            return self._ids
        texts = describe(captions.tokenise(self._texts))
        labels = label_features(texts, self._members.to(texts.device))
        stream = self._stream(captions, describe, labels)
        curated = curate(stream, replace(self.curation, target=target), keep_all=number < self.warm_up)
        self._round, self._cursor, self.ratio = number, self._cursor + len(curated.choices), curated.ratio
        self._ids = torch.tensor(curated.ids, dtype=torch.int64)
        return self._ids

    def state(self) -> str:
        """State for resuming in the middle of a round, as JSON: checkpoints restore tensors of the shape that they find, and rounds differ
        in length."""
        return json.dumps({"round": self._round, "cursor": self._cursor, "ratio": self.ratio, "ids": self._ids.tolist()})

    def restore(self, state: str) -> None:
        found = json.loads(state)
        self._round, self._cursor, self.ratio = found["round"], found["cursor"], found["ratio"]
        self._ids = torch.tensor(found["ids"], dtype=torch.int64)

    def _stream(self, captions: Captions, describe: Describe, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of caption numbers and cosines from the cursor on, for one pass. Each pass has an order of its own."""
        pool, world = min(self.pool, len(captions)), collectives.world_size()
        batches = len(captions) // pool
        for first in range(self._cursor, self._cursor + batches, world):
            ids = [self._batch(first + rank, pool, batches, len(captions)) for rank in range(world)]
            local_cosine = label_similarity(describe(captions.read(ids[collectives.rank()])), labels).cosine
            yield from zip(ids, torch.split(collectives.all_gather(local_cosine), pool), strict=True)

    def _batch(self, number: int, pool: int, batches: int, captions: int) -> Tensor:
        turn, place = divmod(number, batches)
        return _order(self.seed, turn, captions)[place * pool : (place + 1) * pool]


@lru_cache(maxsize=2)
def _order(seed: int, turn: int, captions: int) -> Tensor:
    """Return the order (captions,) of one pass."""
    draw = random_draws.words(torch.tensor([seed]), turn + 1, "captions")[:, -1]
    return random_draws.permutation(draw, captions, "captions")[0]


def _members(counts: Sequence[int]) -> Tensor:
    """Return indices (labels, M) of each label's texts in the list of all texts, -1 if it has fewer."""
    members = torch.full((len(counts), max(counts)), -1)
    first = 0
    for label, count in enumerate(counts):
        members[label, :count] = torch.arange(first, first + count)
        first += count
    return members
