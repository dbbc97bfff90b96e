"""People in a frame, each by a box and 17 keypoints (COCO, arXiv 1405.0312), and LART's token of such a person.

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.arrays import FloatArray

KEYPOINT_NAMES = (
    "nose",
    *("left eye", "right eye", "left ear", "right ear"),
    *("left shoulder", "right shoulder", "left elbow", "right elbow", "left wrist", "right wrist"),
    *("left hip", "right hip", "left knee", "right knee", "left ankle", "right ankle"),
)
"""COCO's keypoints in its order; left and right are the person's own."""
KEYPOINT_COUNT = len(KEYPOINT_NAMES)
HIPS = (KEYPOINT_NAMES.index("left hip"), KEYPOINT_NAMES.index("right hip"))
MIRRORED = (0, *(number + 1 if number % 2 else number - 1 for number in range(1, KEYPOINT_COUNT)))
"""Index of the keypoint that each one becomes in a mirror image."""
BONES = (
    *((3, 1), (1, 0), (0, 2), (2, 4)),  # head
    *((5, 6), (5, 7), (7, 9), (6, 8), (8, 10)),  # shoulders and arms
    *((5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16)),  # trunk and legs
)
"""Pairs of keypoints that a drawing connects by a line."""

ROW_VALUES = 3 * KEYPOINT_COUNT + 5
"""Number of values of one person: x, y and score of each keypoint, then x, y, width, height and score of the box."""
TOKEN_VALUES = 3 * KEYPOINT_COUNT + 4
"""Number of values of LART's token of a 2D pose; the config is `pose=TrackFeatureDims(TOKEN_VALUES, …), joints=None, appearance=None`."""
ASSUMED_HEIGHT_M = 1.7
"""Height in metres that the height of a box is taken for."""


@dataclass(frozen=True)
class Poses:
    """The N people of one frame, in pixels."""

    keypoints: FloatArray
    """(N, 17, 3) of x, y and score."""
    boxes: FloatArray
    """(N, 5) of x and y of the top left corner, width, height and score."""

    @classmethod
    def from_rows(cls, rows: FloatArray) -> Poses:
        """Split a network's output (N, 56) into keypoints and boxes."""
        return cls(rows[:, : 3 * KEYPOINT_COUNT].reshape(-1, KEYPOINT_COUNT, 3), rows[:, 3 * KEYPOINT_COUNT :])

    def select(self, people: NDArray[np.integer[Any]] | NDArray[np.bool_]) -> Poses:
        return Poses(self.keypoints[people], self.boxes[people])

    def __len__(self) -> int:
        return len(self.boxes)


def suppress_duplicates(poses: Poses, *, min_score: float, max_iou: float = 0.6) -> Poses:
    """Suppress duplicates (NMS): keep people of at least `min_score`, best first, whose IoU with every better one is at most `max_iou`."""
    order = np.argsort(-poses.boxes[:, 4], kind="stable")
    selected: list[int] = []
    for person in order[poses.boxes[order, 4] >= min_score]:
        if not selected or box_iou(poses.boxes[[person], :4], poses.boxes[selected, :4]).max() <= max_iou:
            selected.append(int(person))
    return poses.select(np.array(selected, np.int64))


def box_iou(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return the intersection over union (N, M) of boxes (N, 4) and (M, 4) of x, y, width, height."""
    first, second = a[:, None], b[None]
    ends = np.minimum(first[..., :2] + first[..., 2:4], second[..., :2] + second[..., 2:4])
    shared = np.clip(ends - np.maximum(first[..., :2], second[..., :2]), 0, None).prod(axis=-1)
    union = first[..., 2:4].prod(axis=-1) + second[..., 2:4].prod(axis=-1) - shared
    ratio: FloatArray = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratio


def encode_tokens(poses: Poses, width: float, height: float) -> NDArray[np.float32]:
    """Return LART's tokens (N, 55) of people in a frame of width × height pixels.

    17 × (x, y, score) relative to the middle of the hips, in heights of the box; then the middle of the box relative to the frame's, in
    longer sides of the frame; the height of the box in the same unit; its score. Tokens do not depend on the frame's resolution; the first
    51 values depend neither on position nor on distance.
    """
    side = max(width, height)
    heights = np.maximum(poses.boxes[:, 3], 1.0)  # (N,)
    hips = poses.keypoints[:, HIPS, :2].mean(axis=1, keepdims=True)  # (N, 1, 2)
    limbs = (poses.keypoints[:, :, :2] - hips) / heights[:, None, None]  # (N, 17, 2)
    joints = np.concatenate([limbs, poses.keypoints[:, :, 2:]], axis=2).reshape(-1, 3 * KEYPOINT_COUNT)  # (N, 51)
    centres = (poses.boxes[:, :2] + poses.boxes[:, 2:4] / 2 - np.array([width, height]) / 2) / side
    return np.concatenate([joints, centres, heights[:, None] / side, poses.boxes[:, 4:]], axis=1).astype(np.float32)


def estimate_depths(boxes: FloatArray, focal: float) -> FloatArray:
    """Estimate the distance in metres, (N,), between the camera and people in boxes (N, 5). focal: focal length in the boxes' pixels."""
    metres: FloatArray = focal * ASSUMED_HEIGHT_M / np.maximum(boxes[:, 3], 1.0)
    return metres
