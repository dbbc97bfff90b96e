"""A fake pose estimator that detects patches of pure colours, since the repository has no image of a person.

Decoding, tracking and LART are real.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.people.keypoints import KEYPOINT_COUNT, TOKEN_VALUES, Poses, encode_tokens
from models.systems.actions.detection_scale import Detail
from models.systems.actions.pose_estimator import (
    Detections,
    DetectorInput,
    IdentityTracker,
    PersonObservations,
    location_config,
    location_vectors,
)
from tests.support.videos import clip, every

SIZE = (120, 160)
RED, BLUE = (230, 30, 30), (30, 30, 230)


class ColourEyes:
    """Fake detector of a red and a blue person, whose keypoints lie evenly on the diagonal of its patch."""

    def __init__(self) -> None:
        self.frames = 0
        """Number of frames seen so far."""

    @property
    def values(self) -> Mapping[str, int]:
        return {"pose": TOKEN_VALUES}

    def long_side(self, detail: Detail) -> None:
        return

    def find(self, views: Sequence[DetectorInput], max_people: Sequence[int]) -> list[Detections]:
        self.frames += len(views)
        return [_detect(view.pixels) for view in views]

    def read(self, crops: Tensor) -> NDArray[np.float32]:
        raise AssertionError("there are none")

    def observe(self, detections: Detections, predicted: NDArray[np.float32]) -> PersonObservations:
        people, (height, width) = Poses(detections.poses.reshape(-1, KEYPOINT_COUNT, 3), detections.boxes), detections.size
        return PersonObservations(
            detections.boxes, detections.poses, encode_tokens(people, width, height), location_vectors(people, width, height)
        )

    def tokens(self, boxes: NDArray[np.float32], poses: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        return encode_tokens(Poses(poses.reshape(-1, KEYPOINT_COUNT, 3), boxes), size[1], size[0])

    def follow(self, rate: float) -> IdentityTracker:
        return IdentityTracker(location_config(rate))


def _detect(frame: NDArray[np.uint8]) -> Detections:
    boxes = [box for channel in (0, 2) if (box := _box(frame, channel)) is not None]
    keypoints = np.array([_diagonal(box) for box in boxes], np.float32).reshape(-1, 3 * KEYPOINT_COUNT)
    return Detections(np.array(boxes, np.float32).reshape(-1, 5), keypoints, (frame.shape[0], frame.shape[1]))


@functools.cache
def two_people(count: int = 60, rate: float = 15.0, hidden: range = range(0)) -> bytes:
    """Make a video of a red person who walks to the right, but is hidden in the frames `hidden`, and a blue one who stands."""
    frames = []
    for number in range(count):
        image = np.full((*SIZE, 3), 90, np.uint8)
        image[30:100, 110:140] = BLUE
        if number not in hidden:
            image[40:100, 8 + number : 32 + number] = RED
        frames.append(image)
    return clip(every(count, rate), frames=frames, size=SIZE, codec="ffv1", container="matroska", pixels="bgr0")


def long_video() -> bytes:
    """Make a video of two people for 40 seconds."""
    return two_people(600)


def cut_clip(first: int = 40, second: int = 35, rate: float = 15.0) -> bytes:
    """Make a video of two shots of two people who stand in each other's place after the cut."""
    places = [((40, 60, 8, 32), (30, 100, 110, 140)), ((30, 100, 110, 140), (40, 60, 8, 32))]
    frames = []
    for shot, count in enumerate((first, second)):
        background = (
            np.random.default_rng(shot).integers(30 + 60 * shot, 90 + 60 * shot, (SIZE[0] // 10, SIZE[1] // 10, 1)).astype(np.uint8)
        )
        image = np.repeat(np.kron(background, np.ones((10, 10, 1), np.uint8)), 3, axis=2)
        for (top, bottom, left, right), colour in zip(places[shot], (RED, BLUE), strict=True):
            image[top:bottom, left:right] = colour
        frames += [image] * count
    return clip(every(len(frames), rate), frames=frames, size=SIZE, codec="ffv1", container="matroska", pixels="bgr0")


def _box(frame: NDArray[np.uint8], channel: int) -> list[float] | None:
    others = [other for other in (0, 2) if other != channel]
    rows, columns = np.nonzero((frame[..., channel] > 150) & (frame[..., others[0]] < 100))
    if not len(rows):
        return None
    left, top = float(columns.min()), float(rows.min())
    return [left, top, columns.max() + 1 - left, rows.max() + 1 - top, 0.9 if channel == 2 else 0.8]


def _diagonal(box: list[float]) -> NDArray[np.float64]:
    left, top, width, height, score = box
    along = np.linspace(0, 1, KEYPOINT_COUNT)
    return np.stack([left + along * width, top + along * height, np.full(KEYPOINT_COUNT, score)], axis=1)
