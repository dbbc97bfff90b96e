"""Who is who: PHALP's association, by places alone or by poses too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.actions.perception import Seen
from models.people.cameras import FOCAL
from models.people.poses import STATURE
from models.people.tracks import POSE
from models.phalp.location import FRAME
from models.phalp.tracker import Observation, State, Tracker, TrackerConfig

NOTHING = np.zeros(1)


class ByPlace:
    def __init__(self) -> None:
        self._tracker = Tracker(TrackerConfig(predict_pose=False, compare_appearance=False))

    def update(self, seen: Seen, row: int, size: tuple[int, int]) -> Sequence[int]:
        people = [
            Observation(row, NOTHING, np.zeros(POSE), location, float(box[4]))
            for box, location in zip(seen.boxes, _locations(seen, size), strict=True)
        ]
        return self._tracker.update(people).numbers

    @property
    def alive(self) -> frozenset[int]:
        return frozenset(track.number for track in self._tracker.tracks)

    @property
    def confirmed(self) -> frozenset[int]:
        return frozenset(track.number for track in self._tracker.tracks if track.state is State.CONFIRMED)


def _locations(seen: Seen, size: tuple[int, int]) -> np.ndarray:
    """(N, 99)."""
    side = max(size)
    corner = np.array([(side - size[1]) / 2, (side - size[0]) / 2])
    boxes = seen.boxes.astype(np.float64)
    middles = (boxes[:, :2] + boxes[:, 2:4] / 2 + corner) / side  # (N, 2)
    depth = FOCAL * STATURE / np.maximum(boxes[:, 3] * FRAME / side, 1.0)
    places = np.concatenate([(middles - 0.5) * depth[:, None] * FRAME / FOCAL, depth[:, None]], axis=1)  # (N, 3)
    return np.concatenate([np.tile(middles, 45), np.tile(places, 3)], axis=1)
