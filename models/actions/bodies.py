"""People by their bodies: a detector's boxes, HMR 2.0's pose and camera of each crop (arXiv 2305.20091), and PHALP's association by both.

Tokens are LART's published ones of 229 values. Joints and meshes need the licensed body model, so networks that want them cannot be fed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.actions.following import Tracked
from models.actions.perception import Following, Seen, View
from models.bundle import Preprocess
from models.hmr2.model import HMR2
from models.onnx_graph.poses import PoseGraph
from models.people import crops
from models.people.cameras import SquareFrame
from models.people.poses import KEYPOINTS, Poses
from models.people.tracklets import DEPTH_UNIT
from models.people.tracks import POSE
from models.phalp.tracker import TrackerConfig

CROPS_AT_ONCE = 16
POINTS = 45
"""Of a location vector; all are where the camera projects to, the only one that is compared."""


class Bodies:
    def __init__(self, detector: PoseGraph, regressor: HMR2, preprocess: Preprocess) -> None:
        self._detector = detector
        self._regressor = regressor
        self._preprocess = preprocess

    @property
    def values(self) -> Mapping[str, int]:
        return {"pose": POSE}

    @property
    def long_side(self) -> None:
        """Crops are taken from whole frames."""
        return

    def people(self, views: Sequence[View]) -> list[Seen]:
        """The crops of all frames go through the network together."""
        frames = [view.pixels for view in views]
        found = [self._detector.find(torch.from_numpy(frame)[None])[0] for frame in frames]
        cut = [self._crops(frame, people) for frame, people in zip(frames, found, strict=True)]
        poses, cameras = self._regress(torch.cat(cut))
        counts = [len(people) for people in found]
        rows = zip(frames, found, poses.split(counts), cameras.split(counts), strict=True)  # type: ignore[no-untyped-call]
        return [_seen(people, pose, camera, *frame.shape[:2]) for frame, people, pose, camera in rows]

    def tokens(self, boxes: NDArray[np.float32], poses: NDArray[np.float32], size: tuple[int, int]) -> None:
        """Keypoints do not tell a body's rotations."""
        return

    def follow(self, rate: float) -> Following:
        return Tracked(TrackerConfig(predict_pose=False, compare_appearance=False))

    def _crops(self, frame: NDArray[np.uint8], people: Poses) -> Tensor:
        """(N, 3, S, S), normalised."""
        size = self._regressor.config.image_size
        centres, sides = crops.squares(_padded(people))
        bgr = torch.from_numpy(frame).flip(-1)
        if not len(people):
            return torch.zeros(0, 3, size, size)
        return crops.normalise(crops.crop(bgr, centres, sides, size), self._preprocess.mean, self._preprocess.std)

    def _regress(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, S, S) → poses (N, 226) and cameras of the crops (N, 3)."""
        parameter = next(self._regressor.parameters())
        people = [self._regressor(some.to(parameter.device, parameter.dtype)).person for some in images.split(CROPS_AT_ONCE) if len(some)]  # type: ignore[no-untyped-call]
        if not people:
            return torch.zeros(0, POSE - 3), torch.zeros(0, 3)
        return torch.cat([one.pose for one in people]).float().cpu(), torch.cat([one.camera for one in people]).float().cpu()


def _padded(people: Poses) -> Tensor:
    """Boxes (N, 4) of x1, y1, x2, y2, grown to the regressor's aspect."""
    boxes = torch.from_numpy(people.boxes[:, :4].astype(np.float32))
    return crops.expand(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1))


def _seen(people: Poses, pose: Tensor, camera: Tensor, height: int, width: int) -> Seen:
    square = SquareFrame(width, height)
    place = square.translation(camera, _padded(people))  # (N, 3)
    point = square.points(torch.zeros(len(people), 1, 3), place)[:, 0]  # (N, 2)
    scaled = place * place.new_tensor([1.0, 1.0, 1 / DEPTH_UNIT])
    return Seen(
        people.boxes.astype(np.float32),
        people.keypoints.reshape(-1, 3 * KEYPOINTS).astype(np.float32),
        torch.cat([pose, scaled], dim=1).numpy(),
        torch.cat([point.repeat(1, POINTS), place.repeat(1, 3)], dim=1).double().numpy(),
    )
