"""A person's 2D poses over time as input of LART (arXiv 2304.01199): `TOKEN_VALUES` values instead of its 229 values of a body."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.arrays import FloatArray
from models.people.keypoints import Poses, encode_tokens
from models.people.track_batch import TrackBatch


@dataclass(frozen=True)
class PoseTrack:
    """One person from the first frame in which they were observed to the last."""

    person: int
    """Number of the person, from 1, by first appearance."""
    first_frame: int
    """Frame of the first row."""
    rows: FloatArray
    """(L, 56), see `models.people.keypoints`; zeros where the person was not observed."""
    detected: NDArray[np.bool_]
    """(L,)."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def poses(self) -> Poses:
        return Poses.from_rows(self.rows)


def to_lart_tracks(track: PoseTrack, width: float, height: float) -> TrackBatch:
    """Return a batch (1, L, 1, ·) for `models.systems.lart.windows.predict_track`. width, height: pixels of the video's frames."""
    detected = torch.from_numpy(track.detected)
    pose = torch.from_numpy(encode_tokens(track.poses, width, height))
    return TrackBatch(
        pose=torch.where(detected[:, None], pose, 0.0)[None, :, None],
        detected=detected.float()[None, :, None, None],
    )
