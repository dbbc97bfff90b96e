"""Protocol and data of pose estimation: frames → people, the token of each for LART, and their identities over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.people.track_batch import POSE_VALUES
from models.systems.actions.detection_scale import Detail
from models.systems.phalp.tracker import Observation, Tracker, TrackerConfig, TrackState


@dataclass(frozen=True)
class DetectorInput:
    """A frame, possibly scaled down."""

    pixels: NDArray[np.uint8]
    """(h, w, 3), RGB."""
    height: int
    width: int
    """Height and width of the video's frames: all coordinates are in their pixels."""
    detail: Detail
    """Detail of detection."""

    @classmethod
    def from_frame(cls, pixels: NDArray[np.uint8], detail: Detail = "fast") -> DetectorInput:
        return cls(pixels, pixels.shape[0], pixels.shape[1], detail)


@dataclass(frozen=True)
class Detections:
    """The N people of one frame, before the network has read their crops."""

    boxes: NDArray[np.float32]
    """(N, 5), as in `PersonObservations`."""
    poses: NDArray[np.float32]
    """(N, 51) or (N, 0)."""
    size: tuple[int, int]
    """Height and width of the video's frames."""
    crops: Tensor | None = None
    """(N, 3, S, S), to be read by the network; None: boxes and keypoints suffice."""


@dataclass(frozen=True)
class PersonObservations:
    """The N people of one frame."""

    boxes: NDArray[np.float32]
    """(N, 5): x, y, width and height in pixels, and score."""
    poses: NDArray[np.float32]
    """(N, 51): x, y and score of COCO's 17 keypoints; (N, 0) if the member returns none."""
    tokens: NDArray[np.float32]
    """(N, D), not normalised."""
    locations: NDArray[np.float64]
    """(N, 99), PHALP's location vectors, by which people are tracked."""

    def __len__(self) -> int:
        return len(self.boxes)

    def best(self, count: int) -> PersonObservations:
        """Return the `count` people with the highest scores."""
        order = np.argsort(-self.boxes[:, 4], kind="stable")[:count]
        return PersonObservations(self.boxes[order], self.poses[order], self.tokens[order], self.locations[order])


class IdentityTracker(Protocol):
    """Identities of people, frame by frame. `update` changes it: copy it first if the earlier state is needed."""

    def update(self, seen: PersonObservations, row: int, *, cut: bool = False) -> Sequence[int]:
        """Return the number of each person of the next frame. cut: whether the video was cut before it."""

    @property
    def alive(self) -> frozenset[int]:
        """Numbers of tracks that may continue."""

    @property
    def confirmed(self) -> frozenset[int]:
        """Numbers of live tracks with enough detections to be reported."""


NOTHING = np.zeros(1)
"""Placeholder for an unknown appearance."""


class PhalpIdentityTracker:
    """PHALP by location vectors, and by poses if the tracker compares them. Every track ends at a cut: locations do not carry over to
    another shot, and a posture alone does not identify a person."""

    def __init__(self, config: TrackerConfig) -> None:
        self._tracker = Tracker(config)
        self._earlier = 0
        """Highest number before the last cut."""
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


class PoseEstimator(Protocol):
    @property
    def values(self) -> Mapping[str, int]:
        """Number of values of a token, by kind: pose, joints, appearance."""

    def long_side(self, detail: Detail) -> int | None:
        """Return the long side in pixels that frames may be scaled down to before detection. None if they may not."""

    def find(self, views: Sequence[DetectorInput], max_people: Sequence[int]) -> list[Detections]:
        """Detect the people of each frame. Frames may be of several videos and sizes. max_people: number of people per frame to crop,
        those of the best boxes; the others may be left out."""

    def read(self, crops: Tensor) -> NDArray[np.float32]:
        """Predict the values (M, V) of crops (M, 3, S, S) of `Detections`, of any frames."""

    def observe(self, detections: Detections, predicted: NDArray[np.float32]) -> PersonObservations:
        """Combine a frame's detections with the values predicted for its crops (N, V); (N, 0) if there are no crops."""

    def tokens(self, boxes: NDArray[np.float32], poses: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32] | None:
        """Compute tokens (K, D) from boxes (K, 5) and poses (K, 51) in frames of a height and width. None if poses do not suffice."""

    def follow(self, rate: float) -> IdentityTracker:
        """Make the tracker of a video. rate: rows per second."""
