"""Pose estimation by keypoints: a pose detector, and identities by the location of boxes.

People are tracked by PHALP (arXiv 2112.04477) with its cost of locations alone, without pose and texture. The height of a person's box is
taken for `ASSUMED_HEIGHT_M` metres, which gives the depth; the middle of the box is tracked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.people.cameras import FOCAL
from models.people.keypoints import KEYPOINT_COUNT, TOKEN_VALUES, Poses, encode_tokens, estimate_depths
from models.systems.actions.detection_scale import Detail, long_side
from models.systems.actions.pose_estimator import Detections, DetectorInput, IdentityTracker, PersonObservations, PhalpIdentityTracker
from models.systems.onnx.pose_detector import PoseGraph
from models.systems.phalp.location_forecast import CAMERA_XYZ, FRAME_SIDE, POINT_XY
from models.systems.phalp.tracker import TrackerConfig

MAX_GAP_S = 10 / 3
"""Maximum time without a detection before a track ends, in seconds. The published tracker waits half as long, but its detector finds more
people who are upside down or jump."""
LOCATION_VALUES = 99


class KeypointEstimator:
    def __init__(self, model: PoseGraph) -> None:
        self._model = model

    @property
    def values(self) -> Mapping[str, int]:
        return {"pose": TOKEN_VALUES}

    def long_side(self, detail: Detail) -> int:
        return long_side(detail, self._model.config.long_side, self._model.config.multiple)

    def find(self, views: Sequence[DetectorInput], max_people: Sequence[int]) -> list[Detections]:
        """Detect people one frame at a time, as the graph takes no batches."""
        return [self._detect(view) for view in views]

    def read(self, crops: Tensor) -> NDArray[np.float32]:
        raise NotImplementedError("a keypoint detector makes no crops")

    def observe(self, detections: Detections, predicted: NDArray[np.float32]) -> PersonObservations:
        people, (height, width) = Poses(detections.poses.reshape(-1, KEYPOINT_COUNT, 3), detections.boxes), detections.size
        return PersonObservations(
            detections.boxes, detections.poses, encode_tokens(people, width, height), location_vectors(people, width, height)
        )

    def tokens(self, boxes: NDArray[np.float32], poses: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        height, width = size
        return encode_tokens(Poses(poses.reshape(-1, KEYPOINT_COUNT, 3), boxes), width, height)

    def follow(self, rate: float) -> IdentityTracker:
        return PhalpIdentityTracker(location_config(rate))

    def _detect(self, view: DetectorInput) -> Detections:
        """Detect people in a frame, in pixels of the video's frames."""
        people = self._model.find(torch.from_numpy(view.pixels)[None], long_side=self.long_side(view.detail))[0]
        factor = max(view.height, view.width) / max(view.pixels.shape[:2])
        boxes = (people.boxes * (*4 * (factor,), 1.0)).astype(np.float32)
        keypoints = (people.keypoints * (factor, factor, 1.0)).astype(np.float32)
        return Detections(boxes, keypoints.reshape(-1, 3 * KEYPOINT_COUNT), (view.height, view.width))


def location_config(rate: float) -> TrackerConfig:
    """Return the tracker config for 2D poses: location distance only. rate: frames per second."""
    return TrackerConfig(predict_pose=False, compare_appearance=False, longest_gap=round(MAX_GAP_S * rate))


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
