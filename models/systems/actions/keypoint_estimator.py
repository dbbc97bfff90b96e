"""Pose estimation by keypoints: a pose detector, and identities by the location of boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.people.keypoints import KEYPOINT_COUNT, TOKEN_VALUES, Poses, encode_tokens
from models.systems.actions.detection_scale import Detail, long_side
from models.systems.actions.pose_estimator import Detections, DetectorInput, IdentityTracker, PersonObservations, PhalpIdentityTracker
from models.systems.onnx.pose_detector import PoseGraph
from models.systems.phalp.keypoint_tracker import location_config, location_vectors


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
