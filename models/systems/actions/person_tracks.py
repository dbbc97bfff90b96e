"""One person through a video: what LART is to see of them, what it has said, and where they were seen.

Rows are those of the pipeline's grid in time. All of it are values: a step makes new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.people.person_clips import GROUP_FRAMES, AppearanceGroup
from models.systems.actions.second_scores import ScoreAccumulator

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class TrackDetection:
    """A person in one frame, which stands for `rows` rows."""

    person: int
    row: int
    rows: int
    token: Floats
    """(D,), raw; without the appearance where that is told later."""
    box: Floats
    """(6,): seconds, x, y, width, height and score."""
    pose: Floats
    """(1 + 51,): seconds, and x, y and score of COCO's 17 keypoints; (0,) where the pose member tells none."""

    @property
    def end(self) -> int:
        return self.row + self.rows


@dataclass(frozen=True)
class TrackWindow:
    """The rows of one track that LART sees at once. It answers for some of them."""

    tokens: Floats
    """(n, D), from the track's row `start` on; zeros where the person was not seen."""
    detected: NDArray[np.bool_]
    """(n,)."""
    skipped: int
    """Rows of the window before those that are answered."""
    answered: int
    """Number of rows that are answered."""


@dataclass(frozen=True)
class WindowLayout:
    """How a long track is cut into windows (`models.systems.lart.windows`)."""

    step: int = 32
    margin: int = 32


@dataclass(frozen=True)
class PersonTrack:
    person: int
    first: int
    """Row of the first sighting."""
    last: int
    """Row of the last one so far."""
    seconds: ScoreAccumulator
    base: int
    """Row of the first token that is kept."""
    tokens: Floats
    """(n, D)."""
    detected: NDArray[np.bool_]
    """(n,)."""
    places: Floats
    """(n, 4): x, y, width and height of the person's box in each row."""
    answered: int
    """Rows before this one have been answered."""
    described: int
    """Rows before this one have their appearance, if that is told later."""
    appearance: int = 0
    """Number of the last values of a token that are told later: they need frames around the row."""
    boxes: Sequence[Floats] = ()
    poses: Sequence[Floats] = ()
    ended: bool = False
    """No more of this person will be seen."""

    @classmethod
    def begin(cls, sighting: TrackDetection, seconds: ScoreAccumulator, appearance: int = 0) -> PersonTrack:
        row, empty = sighting.row, np.zeros((0, len(sighting.token) + appearance), np.float32)
        return cls(sighting.person, row, row, seconds, row, empty, np.zeros(0, bool), np.zeros((0, 4)), row, row, appearance)

    @property
    def end(self) -> int:
        """Row behind the last token."""
        return self.base + len(self.tokens)

    @property
    def known(self) -> int:
        """Rows before this one have all values of their tokens."""
        return self.described if self.appearance else self.end

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + self.places.nbytes + self.seconds.nbytes + sum(array.nbytes for array in (*self.boxes, *self.poses))

    def seen(self, sightings: Sequence[TrackDetection], until: int) -> PersonTrack:
        """With further sightings, in their order, and known up to row `until`."""
        count = max(until, max((one.end for one in sightings), default=until)) - self.end
        tokens = np.zeros((max(0, count), self.tokens.shape[1]), np.float32)
        detected, places = np.zeros(len(tokens), bool), np.zeros((len(tokens), 4))
        for one in sightings:
            rows = slice(one.row - self.end, one.end - self.end)
            tokens[rows, : len(one.token)], detected[rows], places[rows] = one.token, True, one.box[1:5]
        return replace(
            self,
            last=max([self.last, *(one.end - 1 for one in sightings)]),
            tokens=np.concatenate([self.tokens, tokens]),
            detected=np.concatenate([self.detected, detected]),
            places=np.concatenate([self.places, places]),
            boxes=(*self.boxes, *(one.box for one in sightings)),
            poses=(*self.poses, *(one.pose for one in sightings if len(one.pose))),
        )

    def window(self, span: WindowLayout) -> TrackWindow | None:
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
        if end > self.known:
            return None
        rows = slice(start - self.base, end - self.base)
        return TrackWindow(self.tokens[rows], self.detected[rows], first - start, count)

    def told(self, scores: Floats, span: WindowLayout) -> PersonTrack:
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
            places=self.places[kept],
        )

    def box_at(self, row: int) -> Floats | None:
        """x, y, width and height (4,) in a row that is kept; None where the person was not seen."""
        box: Floats = self.places[row - self.base]
        return box if self.detected[row - self.base] else None

    def group(self, behind: int) -> AppearanceGroup | None:
        """The next rows that share an appearance, counted from the first sighting. None: none are left, or the clip around them is not yet
        known: clips never leave a track, so it must be known what is seen of the person for `behind` rows behind the middle."""
        first, length = self.described - self.first, self.last + 1 - self.first
        if not self.appearance or first >= length:
            return None
        group = AppearanceGroup(first, min(first + GROUP_FRAMES, length))
        is_known = self.ended or (group.end - first == GROUP_FRAMES and group.centre + behind < length)
        return group if is_known else None

    def with_appearance(self, group: AppearanceGroup, feature: Floats) -> PersonTrack:
        """feature: (A,), of the rows of the next group."""
        tokens = self.tokens.copy()
        tokens[self.described - self.base : self.first + group.end - self.base, -self.appearance :] = feature
        return replace(self, tokens=tokens, described=self.first + group.end)
