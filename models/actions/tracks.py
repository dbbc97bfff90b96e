"""One person through a video: what LART is to see of them, what it has said, and where they were seen.

Rows are those of the pipeline's grid in time. All of it are values: a step makes new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.actions.seconds import Seconds

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Sighting:
    """A person in one frame, which stands for `rows` rows."""

    person: int
    row: int
    rows: int
    token: Floats
    """(D,), raw."""
    box: Floats
    """(6,): seconds, x, y, width, height and score."""
    pose: Floats
    """(1 + 51,): seconds, and x, y and score of COCO's 17 keypoints; (0,) where the pose member tells none."""

    @property
    def end(self) -> int:
        return self.row + self.rows


@dataclass(frozen=True)
class Window:
    """What LART sees at once: rows of one track, of which it answers for some."""

    tokens: Floats
    """(n, D), from the track's row `start` on; zeros where the person was not seen."""
    detected: NDArray[np.bool_]
    """(n,)."""
    skipped: int
    """Rows of the window before those that are answered."""
    answered: int
    """Number of rows that are answered."""


@dataclass(frozen=True)
class Span:
    """How a long track is cut into windows (`models.lart.windows`)."""

    step: int = 32
    margin: int = 32


@dataclass(frozen=True)
class Track:
    person: int
    first: int
    """Row of the first sighting."""
    last: int
    """Row of the last one so far."""
    seconds: Seconds
    base: int
    """Row of the first token that is kept."""
    tokens: Floats
    """(n, D)."""
    detected: NDArray[np.bool_]
    """(n,)."""
    answered: int
    """Rows before this one have been answered."""
    boxes: Sequence[Floats] = ()
    poses: Sequence[Floats] = ()
    ended: bool = False
    """No more of this person will be seen."""

    @classmethod
    def begin(cls, sighting: Sighting, seconds: Seconds) -> Track:
        empty = np.zeros((0, len(sighting.token)), np.float32)
        row = sighting.row
        return cls(sighting.person, row, row, seconds, row, empty, np.zeros(0, bool), row)

    @property
    def end(self) -> int:
        """Row behind the last token."""
        return self.base + len(self.tokens)

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + self.seconds.nbytes + sum(array.nbytes for array in (*self.boxes, *self.poses))

    def seen(self, sightings: Sequence[Sighting], until: int) -> Track:
        """With further sightings, in their order, and known up to row `until`."""
        count = max(until, max((one.end for one in sightings), default=until)) - self.end
        tokens = np.zeros((max(0, count), self.tokens.shape[1]), np.float32)
        detected = np.zeros(len(tokens), bool)
        for one in sightings:
            rows = slice(one.row - self.end, one.end - self.end)
            tokens[rows], detected[rows] = one.token, True
        return replace(
            self,
            last=max([self.last, *(one.end - 1 for one in sightings)]),
            tokens=np.concatenate([self.tokens, tokens]),
            detected=np.concatenate([self.detected, detected]),
            boxes=(*self.boxes, *(one.box for one in sightings)),
            poses=(*self.poses, *(one.pose for one in sightings if len(one.pose))),
        )

    def window(self, span: Span) -> Window | None:
        """The next one that can be answered: all that it may see is known. None: nothing yet, or nothing more."""
        first, count = self.answered, span.step
        if self.ended:
            count = min(count, self.last + 1 - first)
            if count <= 0:
                return None
        elif self.last < first + span.step - 1 or self.end < first + span.step + span.margin:
            return None
        start = max(first - span.margin, self.first)
        end = min(first + span.step + span.margin, self.last + 1 if self.ended else self.end)
        rows = slice(start - self.base, end - self.base)
        return Window(self.tokens[rows], self.detected[rows], first - start, count)

    def told(self, scores: Floats, span: Span) -> Track:
        """With the scores (rows, actions) of the rows that its next window answers. Tokens that no window will see are dropped."""
        answered = self.answered + len(scores)
        base = max(self.base, answered - span.margin)
        kept = slice(base - self.base, None)
        return replace(
            self,
            seconds=self.seconds.with_rows(self.answered, scores),
            answered=answered,
            base=base,
            tokens=self.tokens[kept],
            detected=self.detected[kept],
        )
