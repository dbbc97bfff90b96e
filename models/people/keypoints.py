"""People seen in a frame by 17 keypoints (COCO, arXiv 1405.0312) and a box each, and the token that LART sees of one of them.

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

NAMES = (
    "nose",
    *("left eye", "right eye", "left ear", "right ear"),
    *("left shoulder", "right shoulder", "left elbow", "right elbow", "left wrist", "right wrist"),
    *("left hip", "right hip", "left knee", "right knee", "left ankle", "right ankle"),
)
"""COCO's keypoints in its order; left and right are the person's own."""
KEYPOINTS = len(NAMES)
HIPS = (NAMES.index("left hip"), NAMES.index("right hip"))
MIRRORED = (0, *(number + 1 if number % 2 else number - 1 for number in range(1, KEYPOINTS)))
"""The keypoint that each one becomes in a mirror."""
BONES = (
    *((3, 1), (1, 0), (0, 2), (2, 4)),  # head
    *((5, 6), (5, 7), (7, 9), (6, 8), (8, 10)),  # shoulders and arms
    *((5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16)),  # trunk and legs
)
"""Pairs of keypoints that a drawing joins by a line."""

ROW = 3 * KEYPOINTS + 5
"""Values of one person: x, y and score of each keypoint, then x, y, width, height and score of the box."""
TOKEN = 3 * KEYPOINTS + 4
"""Values of LART's token of a 2D pose; the config is `pose=Feature(TOKEN, …), joints=None, appearance=None`."""
STATURE = 1.7
"""Metres that the height of a box stands for."""


@dataclass(frozen=True)
class Poses:
    """The N people of one frame, in its pixels."""

    keypoints: Floats
    """(N, 17, 3) of x, y and score."""
    boxes: Floats
    """(N, 5) of x and y of the top left corner, width, height and score."""

    @classmethod
    def of_rows(cls, rows: Floats) -> Poses:
        """(N, 56), as a network answers."""
        return cls(rows[:, : 3 * KEYPOINTS].reshape(-1, KEYPOINTS, 3), rows[:, 3 * KEYPOINTS :])

    def rows(self) -> Floats:
        """(N, 56)."""
        return np.concatenate([self.keypoints.reshape(-1, 3 * KEYPOINTS), self.boxes], axis=1)

    def chosen(self, people: NDArray[np.integer[Any]] | NDArray[np.bool_]) -> Poses:
        return Poses(self.keypoints[people], self.boxes[people])

    def __len__(self) -> int:
        return len(self.boxes)


def distinct(poses: Poses, *, least_score: float, overlap: float = 0.6) -> Poses:
    """The people of at least `least_score`, best first; whoever overlaps a better one by more than `overlap` is left out as its double."""
    order = np.argsort(-poses.boxes[:, 4], kind="stable")
    kept: list[int] = []
    for person in order[poses.boxes[order, 4] >= least_score]:
        if not kept or overlaps(poses.boxes[[person], :4], poses.boxes[kept, :4]).max() <= overlap:
            kept.append(int(person))
    return poses.chosen(np.array(kept, np.int64))


def overlaps(a: Floats, b: Floats) -> Floats:
    """Intersection over union of boxes (N, 4) and (M, 4), x, y, width, height → (N, M)."""
    first, second = a[:, None], b[None]
    ends = np.minimum(first[..., :2] + first[..., 2:4], second[..., :2] + second[..., 2:4])
    shared = np.clip(ends - np.maximum(first[..., :2], second[..., :2]), 0, None).prod(axis=-1)
    union = first[..., 2:4].prod(axis=-1) + second[..., 2:4].prod(axis=-1) - shared
    ratio: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratio


def tokens(poses: Poses, width: float, height: float) -> NDArray[np.float32]:
    """LART's tokens (N, 55) of people in a frame of so many pixels.

    17 × (x, y, score) from the middle of the hips, in heights of the box; then the middle of the box from that of the frame and the height
    of the box, in longer sides of the frame, and its score. The same for a frame of another resolution; the first 51 also for a person
    elsewhere in it or at another distance.
    """
    side = max(width, height)
    tall = np.maximum(poses.boxes[:, 3], 1.0)  # (N,)
    hips = poses.keypoints[:, HIPS, :2].mean(axis=1, keepdims=True)  # (N, 1, 2)
    limbs = (poses.keypoints[:, :, :2] - hips) / tall[:, None, None]  # (N, 17, 2)
    joints = np.concatenate([limbs, poses.keypoints[:, :, 2:]], axis=2).reshape(-1, 3 * KEYPOINTS)  # (N, 51)
    middles = (poses.boxes[:, :2] + poses.boxes[:, 2:4] / 2 - np.array([width, height]) / 2) / side
    return np.concatenate([joints, middles, tall[:, None] / side, poses.boxes[:, 4:]], axis=1).astype(np.float32)


def depths(boxes: Floats, focal: float) -> Floats:
    """Metres between the camera and people in boxes (N, 5). focal: focal length in the boxes' pixels."""
    metres: Floats = focal * STATURE / np.maximum(boxes[:, 3], 1.0)
    return metres
