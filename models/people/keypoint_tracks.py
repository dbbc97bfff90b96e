"""A person's 2D poses over time, as LART takes them (arXiv 2304.01199): in place of its 229 values of a body, `TOKEN` values of a pose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.people.keypoints import Poses, tokens
from models.people.track_batch import Tracks

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class PoseTrack:
    """One person from the first frame in which they were observed to the last."""

    person: int
    """From 1, by first appearance."""
    first: int
    """Frame of the first row."""
    rows: Floats
    """(L, 56), see `models.people.keypoints`; zeros where the person was not observed."""
    detected: NDArray[np.bool_]
    """(L,)."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def poses(self) -> Poses:
        return Poses.of_rows(self.rows)


def lart_tracks(track: PoseTrack, width: float, height: float) -> Tracks:
    """(1, L, 1, ·), for `models.systems.lart.windows.read_track`. width, height: pixels of the video's frames."""
    seen = torch.from_numpy(track.detected)
    pose = torch.from_numpy(tokens(track.poses, width, height))
    return Tracks(
        pose=torch.where(seen[:, None], pose, 0.0)[None, :, None],
        detected=seen.float()[None, :, None, None],
    )
