"""Tracking of people by 2D poses: PHALP (arXiv 2112.04477) with its cost of locations alone, without pose and texture.

The height of a person's box is taken for `ASSUMED_HEIGHT_M` metres, which gives the depth; the middle of the box is tracked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from models.arrays import FloatArray
from models.people.cameras import FOCAL
from models.people.keypoint_tracks import PoseTrack
from models.people.keypoints import ROW_VALUES, Poses, estimate_depths
from models.systems.phalp.location_forecast import CAMERA_XYZ, FRAME_SIDE, POINT_XY
from models.systems.phalp.tracker import Observation, Tracker, TrackerConfig

LOCATION_ONLY = TrackerConfig(predict_pose=False, compare_appearance=False)
MAX_GAP_S = 10 / 3
"""Maximum time without a detection before a track ends, in seconds. The published tracker waits half as long, but its detector finds more
people who are upside down or jump."""
LOCATION_VALUES, POSE_VALUES = 99, 229


def location_config(rate: float) -> TrackerConfig:
    """Return the tracker config for 2D poses: location distance only. rate: frames per second."""
    return replace(LOCATION_ONLY, longest_gap=round(MAX_GAP_S * rate))


@dataclass
class PoseTracker:
    """Tracker of the people in one video, frame by frame. `copy.deepcopy` makes an independent tracker in the same state."""

    width: float
    height: float
    """Size of the frames in pixels."""
    rate: float
    """Frames per second."""
    config: TrackerConfig = field(init=False)
    _tracker: Tracker = field(init=False)
    _rows_by_track: dict[int, dict[int, FloatArray]] = field(default_factory=dict)
    """Number of a track → frame index → row."""
    _frame_count: int = 0
    _last_number: int = 0
    """Highest number of a track before the last cut."""

    def __post_init__(self) -> None:
        self.config = location_config(self.rate)
        self._tracker = Tracker(self.config)

    def update(self, poses: Poses, *, shot: bool = False) -> tuple[int, ...]:
        """Add the people of the next frame, and return the number of each one's track.

        shot: True if the video was cut before this frame; locations mean nothing across a cut, so every track ends there.
        """
        if shot:
            self._last_number = max(self._rows_by_track, default=0)
            self._tracker = Tracker(self.config)
        locations = location_vectors(poses, self.width, self.height)
        observations = [Observation(self._frame_count, np.zeros(1), np.zeros(POSE_VALUES), location) for location in locations]
        numbers = tuple(self._last_number + number for number in self._tracker.update(observations).track_numbers)
        for number, row in zip(numbers, poses.to_rows(), strict=True):
            self._rows_by_track.setdefault(number, {})[self._frame_count] = row
        self._frame_count += 1
        return numbers

    def tracks(self) -> list[PoseTrack]:
        """Return the tracks so far, by first appearance, without those of fewer detections than confirm a track."""
        confirmed = [rows for rows in self._rows_by_track.values() if len(rows) >= self.config.confirmed_after]
        in_order = sorted(confirmed, key=lambda rows: min(rows))
        return [_track(number, rows) for number, rows in enumerate(in_order, start=1)]


def location_vectors(poses: Poses, width: float, height: float) -> NDArray[np.float64]:
    """Return location vectors (N, 99) for `Observation`. width, height: pixels of the frame."""
    side = max(width, height)
    boxes = poses.boxes.astype(np.float64)
    corner = np.array([side - width, side - height]) / 2
    points = (boxes[:, :2] + boxes[:, 2:4] / 2 + corner) / side  # (N, 2), in units of the square frame
    depth = estimate_depths(boxes / side * FRAME_SIDE, FOCAL)[:, None]
    places = np.concatenate([(points - 0.5) * FRAME_SIDE * depth / FOCAL, depth], axis=1)  # (N, 3), metres
    locations = np.zeros((len(poses), LOCATION_VALUES))
    locations[:, POINT_XY] = points
    locations[:, CAMERA_XYZ.start :] = np.tile(places, 3)
    return locations


def track_poses(frames: Sequence[Poses], width: float, height: float, rate: float, *, cuts: Sequence[int] = ()) -> list[PoseTrack]:
    """Track the people of a whole video of `rate` frames per second. cuts: indices of frames before which it was cut."""
    tracker = PoseTracker(width, height, rate)
    for index, poses in enumerate(frames):
        tracker.update(poses, shot=index in cuts)
    return tracker.tracks()


def _track(person: int, rows_by_frame: dict[int, FloatArray]) -> PoseTrack:
    first, last = min(rows_by_frame), max(rows_by_frame)
    rows, detected = np.zeros((last - first + 1, ROW_VALUES), np.float32), np.zeros(last - first + 1, np.bool_)
    for frame, row in rows_by_frame.items():
        rows[frame - first], detected[frame - first] = row, True
    return PoseTrack(person, first, rows, detected)
