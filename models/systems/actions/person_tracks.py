"""The track of one person through a video: tokens for LART, its scores, and the person's boxes and poses.

The scores of a second are the mean over the rows around its key frame: AVA (arXiv 1705.08421) labels one key frame per second, and LART's
published figures average the scores, after the sigmoid, over 12 rows around it at 30 rows per second. Here the key frame is the middle of
the second.

Rows are those of the pipeline's time grid. All classes are immutable: a step makes new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.people.person_clips import GROUP_FRAMES, AppearanceGroup

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


Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class TrackDetection:
    """A person in one frame, which represents `rows` rows."""

    person: int
    row: int
    rows: int
    token: Floats
    """(D,), not normalised; without the appearance if that is computed later."""
    box: Floats
    """(6,): seconds, x, y, width, height and score."""
    pose: Floats
    """(1 + 51,): seconds, and x, y and score of COCO's 17 keypoints; (0,) if the pose member returns none."""

    @property
    def end(self) -> int:
        return self.row + self.rows


@dataclass(frozen=True)
class TrackWindow:
    """The rows of one track that LART sees at once. It scores some of them."""

    tokens: Floats
    """(n, D), from the track's row `start` on; zeros where the person was not detected."""
    detected: NDArray[np.bool_]
    """(n,)."""
    skipped: int
    """Number of rows of the window before those that are scored."""
    answered: int


@dataclass(frozen=True)
class WindowLayout:
    """Layout of the windows of a long track, in rows (`models.systems.lart.model`)."""

    step: int = 32
    margin: int = 32


@dataclass(frozen=True)
class PersonTrack:
    person: int
    first: int
    last: int
    """Row of the last detection so far."""
    seconds: ScoreAccumulator
    base: int
    """Row of the first token in memory."""
    tokens: Floats
    """(n, D)."""
    detected: NDArray[np.bool_]
    """(n,)."""
    places: Floats
    """(n, 4): x, y, width and height of the person's box in each row."""
    answered: int
    """First row without scores."""
    described: int
    """First row without appearance, if that is computed later."""
    appearance: int = 0
    """Number of values at the end of a token that are computed later: they need the frames around the row."""
    boxes: Sequence[Floats] = ()
    poses: Sequence[Floats] = ()
    ended: bool = False

    @classmethod
    def start(cls, sighting: TrackDetection, seconds: ScoreAccumulator, appearance: int = 0) -> PersonTrack:
        row, empty = sighting.row, np.zeros((0, len(sighting.token) + appearance), np.float32)
        return cls(sighting.person, row, row, seconds, row, empty, np.zeros(0, bool), np.zeros((0, 4)), row, row, appearance)

    @property
    def end(self) -> int:
        return self.base + len(self.tokens)

    @property
    def complete_end(self) -> int:
        return self.described if self.appearance else self.end

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + self.places.nbytes + self.seconds.nbytes + sum(array.nbytes for array in (*self.boxes, *self.poses))

    def with_detections(self, sightings: Sequence[TrackDetection], until: int) -> PersonTrack:
        """Append further detections, in order, and fill the rows up to `until`."""
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
        """Return the next window, if all of its rows are known. None if they are not yet, or if there are no more windows."""
        first, count = self.answered, span.step
        if self.ended:
            count = min(count, self.last + 1 - first)
            if count <= 0:
                return None
        elif self.last < first + span.step - 1 or self.end < first + span.step + span.margin:
            return None
        start = max(first - span.margin, self.first)
        end = min(first + span.step + span.margin, self.last + 1 if self.ended else self.end)
        if end > self.complete_end:
            return None
        rows = slice(start - self.base, end - self.base)
        return TrackWindow(self.tokens[rows], self.detected[rows], first - start, count)

    def with_scores(self, scores: Floats, span: WindowLayout) -> PersonTrack:
        """Add the scores (rows, actions) of the next window. Tokens that no later window needs are dropped."""
        answered = self.answered + len(scores)
        base = max(self.base, answered - span.margin)
        rows = slice(base - self.base, None)
        return replace(
            self,
            seconds=self.seconds.with_rows(self.answered, scores),
            answered=answered,
            base=base,
            tokens=self.tokens[rows],
            detected=self.detected[rows],
            places=self.places[rows],
        )

    def box_at(self, row: int) -> Floats | None:
        """Return x, y, width and height (4,) in a row whose token is in memory. None if the person was not detected in it."""
        box: Floats = self.places[row - self.base]
        return box if self.detected[row - self.base] else None

    def group(self, behind: int) -> AppearanceGroup | None:
        """Return the next rows that share an appearance, counted from the first detection. None if none are left, or if the clip around
        them is not yet known: clips never leave a track, so the `behind` rows after the middle must be known."""
        first, length = self.described - self.first, self.last + 1 - self.first
        if not self.appearance or first >= length:
            return None
        group = AppearanceGroup(first, min(first + GROUP_FRAMES, length))
        is_known = self.ended or (group.end - first == GROUP_FRAMES and group.centre + behind < length)
        return group if is_known else None

    def with_appearance(self, group: AppearanceGroup, feature: Floats) -> PersonTrack:
        """Set the appearance of the rows of the next group to a feature (A,)."""
        tokens = self.tokens.copy()
        tokens[self.described - self.base : self.first + group.end - self.base, -self.appearance :] = feature
        return replace(self, tokens=tokens, described=self.first + group.end)
