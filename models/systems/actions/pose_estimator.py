"""How the members of a pipeline see people: frames → who is in them, what LART is to know of each, and who is who over time."""

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
    """A frame, perhaps shrunk."""

    pixels: NDArray[np.uint8]
    """(h, w, 3), RGB."""
    height: int
    width: int
    """Height and width of the video's frames: all places are told in their pixels."""
    detail: Detail
    """How closely people are looked for."""

    @classmethod
    def whole(cls, pixels: NDArray[np.uint8], detail: Detail = "fast") -> DetectorInput:
        return cls(pixels, pixels.shape[0], pixels.shape[1], detail)


@dataclass(frozen=True)
class Detections:
    """The N people of one frame, before each has been looked at by itself."""

    boxes: NDArray[np.float32]
    """(N, 5), as `PersonObservations` has them."""
    poses: NDArray[np.float32]
    """(N, 51) or (N, 0)."""
    size: tuple[int, int]
    """Height and width of the video's frames."""
    crops: Tensor | None = None
    """(N, 3, S, S), what is still to be looked at; None: boxes and keypoints tell all."""


@dataclass(frozen=True)
class PersonObservations:
    """The N people of one frame."""

    boxes: NDArray[np.float32]
    """(N, 5): x, y, width and height in pixels, and score."""
    poses: NDArray[np.float32]
    """(N, 51): x, y and score of COCO's 17 keypoints; (N, 0) where none are told."""
    tokens: NDArray[np.float32]
    """(N, D), raw."""
    locations: NDArray[np.float64]
    """(N, 99), PHALP's location vectors, by which people are followed."""

    def __len__(self) -> int:
        return len(self.boxes)

    def best(self, count: int) -> PersonObservations:
        """The `count` people of the highest scores."""
        order = np.argsort(-self.boxes[:, 4], kind="stable")[:count]
        return PersonObservations(self.boxes[order], self.poses[order], self.tokens[order], self.locations[order])


class IdentityTracker(Protocol):
    """Identities of people, frame by frame. It changes with every frame: copy it before."""

    def update(self, seen: PersonObservations, row: int, *, cut: bool = False) -> Sequence[int]:
        """The number of each person of the next frame. cut: the video was cut before it."""

    @property
    def alive(self) -> frozenset[int]:
        """Numbers that may be seen again."""

    @property
    def confirmed(self) -> frozenset[int]:
        """Numbers that have been seen often enough to be believed, of those that are alive."""


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


class PoseEstimator(Protocol):
    @property
    def values(self) -> Mapping[str, int]:
        """Number of values that a token has, by kind: pose, joints, appearance."""

    def long_side(self, detail: Detail) -> int | None:
        """Long side that frames may be shrunk to before they are looked at, in pixels. None: they may not."""

    def find(self, views: Sequence[DetectorInput], most: Sequence[int]) -> list[Detections]:
        """The people of each frame. Frames may be of several videos and sizes. most: of how many people crops are wanted, those of the best
        boxes; of the others nothing need be told."""

    def read(self, crops: Tensor) -> NDArray[np.float32]:
        """Crops of `Detections` (M, 3, S, S), of any frames → what the network tells of each, (M, V)."""

    def seen(self, found: Detections, told: NDArray[np.float32]) -> PersonObservations:
        """A frame's people with what was told of its crops (N, V); (N, 0) where there are none."""

    def tokens(self, boxes: NDArray[np.float32], poses: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32] | None:
        """Tokens (K, D) of people who were seen before, (K, 5) and (K, 51), in frames of a height and width. None: poses do not suffice."""

    def follow(self, rate: float) -> IdentityTracker:
        """At the begin of a video, looked at so many times a second."""
