"""Pose estimation by body meshes: a detector's boxes, HMR 2.0's pose and camera of each crop (arXiv 2305.20091), and PHALP's association.

Tokens are LART's published ones: 229 values of a pose and, if the user provides the licensed body model, 135 values of 45 joints. Boxes are
expanded to HMR 2.0's aspect ratio before they are cropped, as in 4D-Humans' tracker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.bundle_schema import Preprocess
from models.people import crops
from models.people.cameras import SquareFrame
from models.people.keypoints import KEYPOINT_COUNT
from models.people.smpl import SMPLBody, SMPLOutput, SMPLParameters
from models.people.track_batch import POSE_VALUES
from models.people.tracklets import DEPTH_UNIT, JOINT_COUNT
from models.systems.actions.detection_scale import Detail, long_side
from models.systems.actions.pose_estimator import Detections, DetectorInput, IdentityTracker, PersonObservations, PhalpIdentityTracker
from models.systems.hmr2.model import HMR2
from models.systems.onnx.pose_detector import PoseGraph
from models.systems.phalp.tracker import TrackerConfig

BODY, CAMERA = POSE_VALUES - 3, 3
"""Number of values of a pose with its shape, and of the camera of its crop."""
NEAREST = 0.01
"""Minimum depth in metres: the association takes the logarithm of depths, and the network may predict a person behind the camera."""
POINTS = 45
"""Number of points of a location vector; all of them are the projected position, the only point that is compared."""


class MeshEstimator:
    def __init__(self, detector: PoseGraph, regressor: HMR2, preprocess: Preprocess, body: SMPLBody | None = None) -> None:
        """Keep the networks. body: the user's mesh on the regressor's device; None: tokens have no joints."""
        self._detector = detector
        self._regressor = regressor
        self._preprocess = preprocess
        self._body = body

    @property
    def values(self) -> Mapping[str, int]:
        return {"pose": POSE_VALUES} if self._body is None else {"pose": POSE_VALUES, "joints": 3 * JOINT_COUNT}

    def long_side(self, detail: Detail) -> None:
        """Return None: crops need frames at their full size."""
        return

    def find(self, views: Sequence[DetectorInput], max_people: Sequence[int]) -> list[Detections]:
        return [self._detect(view, count) for view, count in zip(views, max_people, strict=True)]

    def read(self, crops: Tensor) -> NDArray[np.float32]:
        """Predict poses, cameras and joints of the crops, (M, 226 + 3 + 0) or (M, 226 + 3 + 132)."""
        parameter = next(self._regressor.parameters())
        person = self._regressor(crops.to(parameter.device, parameter.dtype)).person
        values: NDArray[np.float32] = torch.cat([person.pose, person.camera, self._joints(person)], dim=1).float().cpu().numpy()
        return values

    def observe(self, detections: Detections, predicted: NDArray[np.float32]) -> PersonObservations:
        (height, width), widths = detections.size, (BODY, CAMERA, 0 if self._body is None else 3 * (JOINT_COUNT - 1))
        pose, camera, joints = torch.from_numpy(predicted.reshape(-1, sum(widths))).split(widths, dim=1)  # type: ignore[no-untyped-call]
        square = SquareFrame(width, height)
        place = square.translation(camera, _expand(detections.boxes))  # (N, 3)
        point = square.project_joints(torch.zeros(len(place), 1, 3), place)[:, 0]  # (N, 2)
        scaled = place * place.new_tensor([1.0, 1.0, 1 / DEPTH_UNIT])
        before = torch.cat([place[:, :2], place[:, 2:].clamp(min=NEAREST)], dim=1)
        locations = torch.cat([point.repeat(1, POINTS), before.repeat(1, 3)], dim=1).double()
        token = [pose, scaled] if self._body is None else [pose, scaled, joints_3d(joints, scaled)]
        return PersonObservations(detections.boxes, detections.poses, torch.cat(token, dim=1).numpy(), locations.numpy())

    def tokens(self, boxes: NDArray[np.float32], poses: NDArray[np.float32], size: tuple[int, int]) -> None:
        """Return None: a body's rotations do not follow from keypoints."""
        return

    def follow(self, rate: float) -> IdentityTracker:
        return PhalpIdentityTracker(TrackerConfig(predict_pose=False, compare_appearance=False))

    def _detect(self, view: DetectorInput, max_people: int) -> Detections:
        config = self._detector.config
        side = long_side(view.detail, config.long_side, config.multiple)
        people = self._detector.find(torch.from_numpy(view.pixels)[None], long_side=side)[0]  # best first
        boxes, keypoints = people.boxes[:max_people].astype(np.float32), people.keypoints[:max_people].astype(np.float32)
        crops = self._crops(view.pixels, boxes)
        return Detections(boxes, keypoints.reshape(-1, 3 * KEYPOINT_COUNT), (view.height, view.width), crops)

    def _joints(self, person: SMPLParameters) -> Tensor:
        """Return the body's 44 joints (M, 132); (M, 0) without a body."""
        if self._body is None:
            return person.camera.new_zeros(len(person.camera), 0)
        posed: SMPLOutput = self._body(person)
        return posed.keypoints.flatten(1)

    def _crops(self, frame: NDArray[np.uint8], boxes: NDArray[np.float32]) -> Tensor:
        """Crop the boxes of a frame and normalise the pixels: (N, 3, S, S)."""
        size = self._regressor.config.image_size
        if not len(boxes):
            return torch.zeros(0, 3, size, size)
        centres, sides = crops.square_boxes(_expand(boxes))
        bgr = torch.from_numpy(frame).flip(-1)
        return crops.normalise(crops.crop(bgr, centres, sides, size), self._preprocess.mean, self._preprocess.std)


def joints_3d(joints: Tensor, camera: Tensor) -> Tensor:
    """Translate the 44 joints of bodies (N, 132) and the zero joint that PHALP appends by the cameras (N, 3): (N, 135). Depths of the
    cameras are divided by 200, as in LART's training."""
    all_joints = torch.cat([joints, joints.new_zeros(len(joints), 3)], dim=1).view(-1, JOINT_COUNT, 3)
    return (all_joints + camera.unsqueeze(1)).flatten(1)


def _expand(boxes: NDArray[np.float32]) -> Tensor:
    """Expand boxes to the regressor's aspect ratio: (N, 4), x1, y1, x2, y2."""
    corners = torch.from_numpy(boxes[:, :4])
    return crops.expand(torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:]], dim=1))
