"""Pose estimation: frames → people, the token of each for LART, and their identities over time.

By keypoints: a pose detector, and PHALP (arXiv 2112.04477) with its cost of locations alone, without pose and texture. The height of a
person's box is taken for `ASSUMED_HEIGHT_M` metres, which gives the depth; the middle of the box is tracked.

By body meshes: a detector's boxes, HMR 2.0's pose and camera of each crop (arXiv 2305.20091), and PHALP's association. Tokens are LART's
published ones: 229 values of a pose and, if the user provides the licensed body model, 135 values of 45 joints. Boxes are expanded to HMR
2.0's aspect ratio before they are cropped, as in 4D-Humans' tracker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.bundle_schema import Preprocess
from models.people import crops
from models.people.crops import FOCAL, SquareFrame
from models.people.keypoints import KEYPOINT_COUNT, TOKEN_VALUES, Poses, encode_tokens, estimate_depths
from models.people.smpl import SMPLBody, SMPLOutput, SMPLParameters
from models.people.track_batch import POSE_VALUES
from models.people.tracklets import DEPTH_UNIT, JOINT_COUNT
from models.systems.actions.detection_scale import Detail, long_side
from models.systems.hmr2.model import HMR2
from models.systems.onnx.pose_detector import PoseGraph
from models.systems.phalp.association_cost import CAMERA_XYZ, FRAME_SIDE, POINT_XY
from models.systems.phalp.tracker import Observation, Tracker, TrackerConfig, TrackState


@dataclass(frozen=True)
class DetectorInput:
    pixels: NDArray[np.uint8]
    """(h, w, 3), RGB."""
    height: int
    width: int
    """Height and width of the video's frames: all coordinates are in their pixels."""
    detail: Detail

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
        order = np.argsort(-self.boxes[:, 4], kind="stable")[:count]
        return PersonObservations(self.boxes[order], self.poses[order], self.tokens[order], self.locations[order])


NOTHING = np.zeros(1)


class IdentityTracker:
    """Identities of people, frame by frame: PHALP by location vectors, and by poses if the tracker compares them. Every track ends at a
    cut: locations do not carry over to another shot, and a posture alone does not identify a person.

    `update` changes it: copy it first if the earlier state is needed."""

    def __init__(self, config: TrackerConfig) -> None:
        self._tracker = Tracker(config)
        self._earlier = 0
        """Highest number before the last cut."""
        self._highest = 0

    def update(self, seen: PersonObservations, row: int, *, cut: bool = False) -> Sequence[int]:
        """Return the number of each person of the next frame. cut: whether the video was cut before it."""
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
        """Numbers of tracks that may continue."""
        return frozenset(self._earlier + track.number for track in self._tracker.tracks)

    @property
    def confirmed(self) -> frozenset[int]:
        """Numbers of live tracks with enough detections to be reported."""
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
        return IdentityTracker(location_config(rate))

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
        return IdentityTracker(TrackerConfig(predict_pose=False, compare_appearance=False))

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
