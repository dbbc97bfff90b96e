"""Tracks as the service accepts them: an .npz with a row per detection of a person (`docs/tasks/actions.md`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.people.tracklets import Tracklet

Arrays = dict[str, NDArray[Any]]


def tracks_to_arrays(tracks: Mapping[int, Tracklet], fps: float, *, joints: bool = False) -> Arrays:
    """Return the detected frames of all tracks as arrays. `token` has the raw pose; with `joints` also the 45 joints in the camera's
    coordinates, as LART takes them."""
    rows = [(number, track, np.flatnonzero(track.detected)) for number, track in tracks.items()]
    sizes = [track.sizes[detected] for _, track, detected in rows]
    height, width = np.concatenate(sizes).max(axis=0) if sizes else (1.0, 1.0)
    return {
        "person": np.concatenate([np.full(len(detected), number, np.int32) for number, _, detected in rows] or [np.zeros(0, np.int32)]),
        "time": np.concatenate([track.frames[detected] / fps for _, track, detected in rows] or [np.zeros(0)]),
        "box": np.concatenate(
            [np.column_stack([track.boxes[detected], track.confidences[detected]]) for _, track, detected in rows] or [np.zeros((0, 5))]
        ).astype(np.float32),
        "token": np.concatenate([_token(track, joints)[detected] for _, track, detected in rows] or [np.zeros((0, 0))]).astype(np.float32),
        "size": np.array([width, height], np.float64),
    }


def write_tracks(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _token(track: Tracklet, joints: bool) -> NDArray[np.float64]:
    """Return tokens (L, 229), or (L, 364) with joints."""
    if not joints:
        return track.pose
    return np.concatenate([track.pose, (track.joints + track.camera[:, None]).reshape(len(track), -1)], axis=1)
