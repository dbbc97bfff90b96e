"""Tracks of people seen as 2D poses: PHALP (arXiv 2112.04477) by location alone, its terms of pose and texture left out.

The height of a person's box stands for `STATURE` metres and so for the depth; the middle of the box is the point that is tracked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.people.cameras import FOCAL
from models.people.keypoint_tracks import PoseTrack
from models.people.keypoints import ROW, Poses, depths
from models.systems.phalp.location_forecast import FRAME, PLACE, POINT
from models.systems.phalp.tracker import Observation, Tracker, TrackerConfig

Floats = NDArray[np.floating[Any]]

BY_LOCATION = TrackerConfig(predict_pose=False, compare_appearance=False)
LONGEST_GAP_S = 10 / 3
"""Seconds without a detection after which a track ends. The published tracker waits half as long, but its detector finds more of people
who are upside down or in flight."""
LOCATION, POSE = 99, 229


def by_location(rate: float) -> TrackerConfig:
    """rate: frames a second."""
    return replace(BY_LOCATION, longest_gap=round(LONGEST_GAP_S * rate))


@dataclass
class PoseTracker:
    """Follows people through one video, frame by frame. `copy.deepcopy` gives one that goes on by itself."""

    width: float
    height: float
    """Pixels of the frames."""
    rate: float
    """Frames a second."""
    config: TrackerConfig = field(init=False)
    _tracker: Tracker = field(init=False)
    _seen: dict[int, dict[int, Floats]] = field(default_factory=dict)
    """Number of a track → frame → row."""
    _frames: int = 0
    _earlier: int = 0
    """The highest number of a track before the last cut."""

    def __post_init__(self) -> None:
        self.config = by_location(self.rate)
        self._tracker = Tracker(self.config)

    def update(self, poses: Poses, *, shot: bool = False) -> tuple[int, ...]:
        """Take the people of the next frame, and say which track each of them belongs to.

        shot: the video was cut before this frame; locations mean nothing across a cut, so every track ends there.
        """
        if shot:
            self._earlier = max(self._seen, default=0)
            self._tracker = Tracker(self.config)
        locations = locations_of(poses, self.width, self.height)
        observed = [Observation(self._frames, np.zeros(1), np.zeros(POSE), location) for location in locations]
        numbers = tuple(self._earlier + number for number in self._tracker.update(observed).numbers)
        for number, row in zip(numbers, poses.rows(), strict=True):
            self._seen.setdefault(number, {})[self._frames] = row
        self._frames += 1
        return numbers

    def tracks(self) -> list[PoseTrack]:
        """The people so far, by first appearance; who was observed less often than confirms a track is nobody."""
        kept = [seen for seen in self._seen.values() if len(seen) >= self.config.confirmed_after]
        in_order = sorted(kept, key=lambda seen: min(seen))
        return [_track(number, seen) for number, seen in enumerate(in_order, start=1)]


def locations_of(poses: Poses, width: float, height: float) -> NDArray[np.float64]:
    """(N, 99), as `Observation` has them. width, height: pixels of the frame."""
    side = max(width, height)
    boxes = poses.boxes.astype(np.float64)
    corner = np.array([side - width, side - height]) / 2
    points = (boxes[:, :2] + boxes[:, 2:4] / 2 + corner) / side  # (N, 2), in units of the square frame
    depth = depths(boxes / side * FRAME, FOCAL)[:, None]
    places = np.concatenate([(points - 0.5) * FRAME * depth / FOCAL, depth], axis=1)  # (N, 3), metres
    locations = np.zeros((len(poses), LOCATION))
    locations[:, POINT] = points
    locations[:, PLACE.start :] = np.tile(places, 3)
    return locations


def follow(frames: Sequence[Poses], width: float, height: float, rate: float, *, cuts: Sequence[int] = ()) -> list[PoseTrack]:
    """The tracks of a whole video of `rate` frames a second. cuts: frames before which it was cut."""
    tracker = PoseTracker(width, height, rate)
    for number, poses in enumerate(frames):
        tracker.update(poses, shot=number in cuts)
    return tracker.tracks()


def _track(person: int, seen: dict[int, Floats]) -> PoseTrack:
    first, last = min(seen), max(seen)
    rows, detected = np.zeros((last - first + 1, ROW), np.float32), np.zeros(last - first + 1, np.bool_)
    for frame, row in seen.items():
        rows[frame - first], detected[frame - first] = row, True
    return PoseTrack(person, first, rows, detected)
