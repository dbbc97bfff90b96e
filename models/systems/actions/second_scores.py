"""Scores of rows → scores of seconds: the mean over the rows around each second's key frame.

AVA (arXiv 1705.08421) labels one key frame per second, and LART's published figures average the scores, after the sigmoid, over 12 rows
around it at 30 rows per second. Here the key frame is the middle of the second.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

HALF_WINDOW_S = 0.2
"""Seconds before and after the key frame: 6 rows at 30 per second."""


@dataclass(frozen=True)
class SecondScores:
    number: int
    """Start in seconds after the video's first frame."""
    scores: NDArray[np.float32]
    """(actions,)."""


@dataclass(frozen=True)
class ScoreAccumulator:
    """Sums of scores of one track, by second. Immutable."""

    rate: float
    first: int
    """Number of the first second."""
    sums: NDArray[np.float64]
    """(seconds, 2, actions): over the rows around the key frame, and over all rows of the second."""
    counts: NDArray[np.int64]
    """(seconds, 2)."""

    @classmethod
    def empty(cls, rate: float, first_row: int, actions: int) -> ScoreAccumulator:
        return cls(rate, int(first_row / rate), np.zeros((0, 2, actions)), np.zeros((0, 2), np.int64))

    @property
    def nbytes(self) -> int:
        return self.sums.nbytes + self.counts.nbytes

    def with_rows(self, first_row: int, scores: NDArray[np.float32]) -> ScoreAccumulator:
        """Add the scores (rows, actions) of the rows from `first_row` on."""
        rows = first_row + np.arange(len(scores))
        number = (rows / self.rate + 1e-9).astype(np.int64)
        missing = max(0, int(number.max(initial=-1)) + 1 - self.first - len(self.sums))
        sums = np.concatenate([self.sums, np.zeros((missing, *self.sums.shape[1:]))])
        counts = np.concatenate([self.counts, np.zeros((missing, 2), np.int64)])
        around = max(1, round(HALF_WINDOW_S * self.rate))
        key = np.round((number + 0.5) * self.rate).astype(np.int64)
        is_core = (rows >= key - around) & (rows < key + around)
        for column, chosen in ((0, is_core), (1, np.ones_like(is_core))):
            np.add.at(sums[:, column], number[chosen] - self.first, scores[chosen])
            np.add.at(counts[:, column], number[chosen] - self.first, 1)
        return replace(self, sums=sums, counts=counts)

    def mean_scores(self) -> list[SecondScores]:
        """Return the mean scores of every second with rows: of the rows around its key frame or, if there are none, of all its rows."""
        seconds = []
        for index, (core, every) in enumerate(self.counts.tolist()):
            if every:
                column, count = (0, core) if core else (1, every)
                seconds.append(SecondScores(self.first + index, (self.sums[index, column] / count).astype(np.float32)))
        return seconds
