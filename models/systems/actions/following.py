"""Identities of people over time: PHALP's association."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.people.track_batch import POSE_VALUES
from models.systems.actions.pose_estimator import PersonObservations
from models.systems.phalp.tracker import Observation, Tracker, TrackerConfig, TrackState

NOTHING = np.zeros(1)
"""Appearance of people of whom none is known."""


class PhalpIdentityTracker:
    """By location vectors, and by poses where the tracker compares them. Every track ends at a cut: where somebody was says nothing about
    where they are in another shot, and people of one posture are many."""

    def __init__(self, config: TrackerConfig) -> None:
        self._tracker = Tracker(config)
        self._earlier = 0
        """The highest number before the last cut."""
        self._highest = 0

    def update(self, seen: PersonObservations, row: int, *, cut: bool = False) -> Sequence[int]:
        if cut:
            self._earlier, self._tracker = self._highest, Tracker(self._tracker.config)
        poses = (
            seen.tokens[:, :POSE_VALUES].astype(np.float64) if seen.tokens.shape[1] >= POSE_VALUES else np.zeros((len(seen), POSE_VALUES))
        )
        people = zip(poses, seen.locations, seen.boxes[:, 4].tolist(), strict=True)
        found = self._tracker.update([Observation(row, NOTHING, pose, location, score) for pose, location, score in people])
        numbers = [self._earlier + number for number in found.track_numbers]
        self._highest = max([self._highest, *numbers])
        return numbers

    @property
    def alive(self) -> frozenset[int]:
        return frozenset(self._earlier + track.number for track in self._tracker.tracks)

    @property
    def confirmed(self) -> frozenset[int]:
        return frozenset(self._earlier + track.number for track in self._tracker.tracks if track.state is TrackState.CONFIRMED)
