"""The answer of a pipeline as arrays: a row for each detection and for each second of a person. People are numbered by first appearance.

boxes float64 (K, 7): person, seconds, x, y, width, height, score; poses float64 (K, 53): person, seconds, and x, y and score of COCO's 17
keypoints, or (0, 53); seconds float64 (S, 3): person, begin and end; scores float32 (S, actions).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.systems.actions.person_tracks import PersonTrack

POSE_ROW = 53


def track_arrays(tracks: Sequence[PersonTrack], rate: float, actions: int, since: float = 0.0) -> dict[str, Tensor]:
    """Convert tracks, sorted by first appearance, to arrays. actions: number of labels. since: rows before these seconds are left out."""
    earliest = since - 0.5 / rate
    boxes, poses, seconds, scores = [np.zeros((0, 7))], [np.zeros((0, POSE_ROW))], [], []
    for person, track in enumerate(tracks, start=1):
        boxes += [np.array([[person, *box]], np.float64) for box in track.boxes if box[0] >= earliest]
        poses += [np.array([[person, *pose]], np.float64) for pose in track.poses if pose[0] >= earliest]
        first, end = track.first / rate, (track.last + 1) / rate
        for second in track.seconds.mean_scores():
            begins, ends = max(float(second.number), first), min(second.number + 1.0, end)
            if ends > since:
                seconds.append((person, begins, ends))
                scores.append(second.scores)
    return {
        "boxes": torch.from_numpy(np.concatenate(boxes)),
        "poses": torch.from_numpy(np.concatenate(poses)),
        "seconds": torch.tensor(seconds, dtype=torch.float64).reshape(-1, 3),
        "scores": torch.from_numpy(np.stack(scores) if scores else np.zeros((0, actions), np.float32)),
    }
