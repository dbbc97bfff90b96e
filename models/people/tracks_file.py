"""Tracks as the service takes them: an .npz with a row for each sighting of a person (`docs/tasks/actions.md`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.people.tracklets import Tracklet

Arrays = dict[str, NDArray[Any]]


def to_arrays(tracks: Mapping[int, Tracklet], fps: float, *, joints: bool = False) -> Arrays:
    """Observed frames alone. `token` holds the pose, raw; joints: also the 45 joints before the camera, as LART takes them."""
    rows = [(number, track, np.flatnonzero(track.detected)) for number, track in tracks.items()]
    sizes = [track.sizes[seen] for _, track, seen in rows]
    height, width = np.concatenate(sizes).max(axis=0) if sizes else (1.0, 1.0)
    return {
        "person": np.concatenate([np.full(len(seen), number, np.int32) for number, _, seen in rows] or [np.zeros(0, np.int32)]),
        "time": np.concatenate([track.frames[seen] / fps for _, track, seen in rows] or [np.zeros(0)]),
        "box": np.concatenate(
            [np.column_stack([track.boxes[seen], track.confidences[seen]]) for _, track, seen in rows] or [np.zeros((0, 5))]
        ).astype(np.float32),
        "token": np.concatenate([_token(track, joints)[seen] for _, track, seen in rows] or [np.zeros((0, 0))]).astype(np.float32),
        "size": np.array([width, height], np.float64),
    }


def write(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _token(track: Tracklet, joints: bool) -> NDArray[np.float64]:
    """(L, 229) or (L, 364)."""
    if not joints:
        return track.pose
    return np.concatenate([track.pose, (track.joints + track.camera[:, None]).reshape(len(track), -1)], axis=1)
