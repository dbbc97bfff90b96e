"""Several sources as one: an epoch takes a fixed number of samples from each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from training.data.base import Sample, Source


@dataclass(frozen=True)
class Mixed:
    """Which of a source's samples stands at an index is drawn anew each time."""

    sources: tuple[Source, ...]
    counts: tuple[int, ...]
    """Samples of each in an epoch."""
    unit: str = "images"
    labels: tuple[str, ...] = ()

    def __len__(self) -> int:
        return sum(self.counts)

    def identity(self) -> Mapping[str, Any]:
        return {str(number): dict(source.identity()) for number, source in enumerate(self.sources)}

    def sample(self, index: int, draw: int) -> Sample:
        """The pixels alone: what else samples have differs from source to source."""
        source = self.sources[next(number for number, end in enumerate(accumulate(self.counts)) if index < end)]
        return {"pixels": source.sample(draw % len(source), draw)["pixels"]}
