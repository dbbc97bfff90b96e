"""Tracks of people: from a tracker's results, from LART's training files, as clips, LART's input, and as the file that
the service accepts."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.arrays import Float64Array
from models.media.safe_joblib import UnsafeFile, read_joblib
from models.people.ava import CLASS_COUNT, EVALUATED_CLASSES
from models.people.track_batch import POSE_VALUES, TrackBatch, normalise_pose

DEPTH_UNIT = 200.0
"""Depths are divided by this in poses and in cameras."""
JOINT_COUNT = 45
LABELLED_BY_PEOPLE = 2
"""Value of `labelled` if people gave the labels; 1 if a network did, 0 for none."""


@dataclass(frozen=True)
class TrackletLabels:
    """Labels and features in a training file; all arrays have a row per frame."""

    labelled: Float64Array
    """(L,)."""
    actions: Float64Array
    """(L, 80) of 0..1, people's labels if there are any, else a network's."""
    appearance: Float64Array
    """(L, A), zeros if there is none."""


@dataclass(frozen=True)
class Tracklet:
    """One person over L frames; frames in which they were not detected are zeros."""

    frames: Float64Array
    """(L,), frame numbers of the source; people of one clip are aligned by them."""
    pose: Float64Array
    """(L, 229), raw."""
    joints: Float64Array
    """(L, 45, 3), relative to the body."""
    camera: Float64Array
    """(L, 3), the depth divided by 200."""
    crop_camera: Float64Array
    """(L, 3)."""
    detected: Float64Array
    """(L,) of 0 and 1."""
    names: tuple[str, ...]
    sizes: Float64Array
    """(L, 2), heights and widths of the frames."""
    boxes: Float64Array
    """(L, 4), x, y, width, height in pixels."""
    confidences: Float64Array
    """(L,)."""
    labels: TrackletLabels | None = None

    def __len__(self) -> int:
        return len(self.frames)


def read_results(path: Path) -> dict[Any, dict[str, Any]]:
    """Read a tracker's results, frame by frame in order. Raises UnsafeFile."""
    content = read_joblib(path)
    if not isinstance(content, dict) or not all(isinstance(frame, dict) and "tracked_ids" in frame for frame in content.values()):
        raise UnsafeFile(f"{path}: not a tracker's results, which are a dict of frames with `tracked_ids`")
    return content


def tracklets_from_results(results: Mapping[Any, Mapping[str, Any]]) -> dict[int, Tracklet]:
    """Return the tracks in a tracker's results by number. Frames where a track was only predicted count as not detected."""
    detections: dict[int, dict[int, tuple[Mapping[str, Any], int]]] = {}  # track → index of the frame → frame, index in its lists
    tracked_numbers = {number for frame in results.values() for number in frame["tracked_ids"]}
    for position, frame in enumerate(results.values()):
        for index, (number, age) in enumerate(zip(frame["tid"], frame["tracked_time"], strict=True)):
            if number in tracked_numbers and age == 0:
                detections.setdefault(number, {})[position] = (frame, index)
    names = [str(name) for name in results]
    return {number: _track(detected_frames, names) for number, detected_frames in sorted(detections.items())}


def _track(detected_frames: Mapping[int, tuple[Mapping[str, Any], int]], names: Sequence[str]) -> Tracklet:
    first, last = min(detected_frames), max(detected_frames)
    length = last - first + 1
    rows = np.array(sorted(detected_frames)) - first
    in_order = [detected_frames[position] for position in sorted(detected_frames)]

    def gather(key: str, *shape: int) -> Float64Array:
        values = np.zeros((length, *shape))
        values[rows] = np.stack([np.asarray(frame[key][index], np.float64).reshape(shape) for frame, index in in_order])
        return values

    people = [frame["smpl"][index] for frame, index in in_order]
    camera = gather("camera", 3)
    camera[:, 2] /= DEPTH_UNIT
    pose, detected = np.zeros((length, POSE_VALUES)), np.zeros(length)
    pose[rows, :226] = np.stack(
        [np.concatenate([np.ravel(person[part]) for part in ("global_orient", "body_pose", "betas")]) for person in people]
    )
    pose[:, 226:] = camera
    detected[rows] = 1
    return Tracklet(
        frames=np.arange(first, last + 1, dtype=np.float64),
        pose=pose,
        joints=gather("3d_joints", JOINT_COUNT, 3),
        camera=camera,
        crop_camera=gather("camera_bbox", 3),
        detected=detected,
        names=tuple(names[first : last + 1]),
        sizes=gather("size", 2),
        boxes=gather("bbox", 4),
        confidences=gather("conf"),
    )


def read_tracklet(path: Path) -> Tracklet:
    """Read a track of LART's training data. Raises UnsafeFile."""
    content = read_joblib(path)
    try:
        return Tracklet(
            frames=_rows(content["fid"]),
            pose=_rows(content["pose_shape"], POSE_VALUES),
            joints=_rows(content["3d_joints"], JOINT_COUNT, 3),
            camera=_rows(content["camera"], 3),
            crop_camera=_rows(content["camera_bbox"], 3),
            detected=_rows(content["has_detection"]),
            names=tuple(map(str, content["frame_name"])),
            sizes=_rows(content["frame_size"], 2),
            boxes=_rows(content["frame_bbox"], 4),
            confidences=_rows(content["frame_conf"]),
            labels=_read_labels(content),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UnsafeFile(f"{path}: not a track of LART's training data ({type(error).__name__}: {error})") from error


def _rows(values: Any, *shape: int) -> Float64Array:
    return np.asarray(values, np.float64).reshape(-1, *shape)


def _read_labels(content: Mapping[str, Any]) -> TrackletLabels:
    index = np.asarray(content["apperance_index"], np.int64).reshape(-1)
    labelled = _rows(content["has_gt"])
    predicted = _look_up_rows(content["action_label_psudo"], index, CLASS_COUNT)
    annotated = _rows(content["action_label_gt"], CLASS_COUNT)
    width = next((np.size(value) for value in content["apperance_dict"].values()), 0)
    return TrackletLabels(
        labelled=labelled,
        actions=np.where(labelled[:, None] == LABELLED_BY_PEOPLE, annotated, predicted),
        appearance=_look_up_rows(content["apperance_dict"], index, width),
    )


def _look_up_rows(table: Mapping[int, Any], index: NDArray[np.int64], width: int) -> Float64Array:
    """Return rows (L, width) of a table by index, zeros for -1."""
    keys = sorted(table)
    rows = np.stack([np.zeros(width), *(np.asarray(table[key], np.float64).reshape(width) for key in keys)])
    row_of = {-1: 0, **{key: row for row, key in enumerate(keys, start=1)}}
    return rows[[row_of[key] for key in index.tolist()]]


@dataclass(frozen=True)
class ClipTargets:
    """Targets of a clip in training and evaluation; all arrays are (T, P, ·)."""

    pose: Tensor
    """(T, P, 229), raw."""
    detected: Tensor
    labelled: Tensor
    """(T, P, 1)."""
    actions: Tensor
    """(T, P, 80): a model's 60 classes come first, then zeros."""


@dataclass(frozen=True)
class TrackletClip:
    """A track and the other people of its clip, T frames; the clip is about person 0."""

    tracks: TrackBatch
    """(1, T, P, ·), normalised."""
    targets: ClipTargets
    frames: Tensor
    """(T, P, 1), the tracks' frame numbers."""
    names: tuple[str, ...]
    """Names of the frames; "-1" for padding."""
    boxes: Tensor
    sizes: Tensor
    confidences: Tensor
    """Boxes, frame sizes and confidences of person 0: (T, 4), (T, 2) and (T,)."""


def build_clip(
    ego: Tracklet,
    other_tracks: Sequence[Tracklet] = (),
    *,
    frames: int,
    people: int,
    mean_std: Tensor,
    classes: Sequence[int] | None = EVALUATED_CLASSES,
    appearance: int | None = None,
    training: bool = False,
) -> TrackletClip:
    """Combine a track and the first of the others into a clip, as the published loader does.

    frames, people: T and P. mean_std: (2, 1, K), of the pose. classes: AVA's numbers of the model's classes; None for all 80. appearance:
    A, the number of values of a feature; None: as in the tracks, of which one at least must have some. training: use one frame less of
    tracks that are not longer than T + 1.

    The caller shuffles the other tracks. Tracks that start before and end after the ego's slice, that do not overlap it, or that have one
    frame, leave their column empty.

    Raises ValueError for an ego of one frame or none, which the published loader skips.
    """
    if len(ego) < 2:
        raise ValueError("a track of one frame or none makes no clip")
    length = min(frames, len(ego) - 1 if training and len(ego) <= frames + 1 else len(ego))
    rows = np.full((frames, people), -1)  # which row of its track each token shows
    rows[:length, 0] = np.arange(length)
    start, end = ego.frames[0], ego.frames[length - 1]
    companions = other_tracks[: people - 1]
    for slot, other in enumerate(companions, start=1):
        if len(other) > 1 and not (other.frames[0] < start and other.frames[-1] > end):
            inside = np.flatnonzero((other.frames >= start) & (other.frames <= end))
            rows[(other.frames[inside] - start).astype(np.int64), slot] = inside
    columns = [ego, *companions]

    def fill(values: Sequence[Float64Array]) -> Tensor:
        """Place one array (L, ·) per person: (T, P, ·), zeros without a person."""
        filled = np.zeros((frames, people, *values[0].shape[1:]))
        for slot, value in enumerate(values):
            filled[rows[:, slot] >= 0, slot] = value[rows[rows[:, slot] >= 0, slot]]
        return torch.from_numpy(filled).float().flatten(2) if filled.ndim > 2 else torch.from_numpy(filled).float().unsqueeze(2)

    pose, detected = fill([track.pose for track in columns]), fill([track.detected for track in columns])
    present = torch.from_numpy(rows >= 0).unsqueeze(2)
    labels = [_require_labels(track) for track in columns]
    width = appearance or max(label.appearance.shape[1] for label in labels)
    features = [label.appearance if label.appearance.shape[1] else np.zeros((len(label.labelled), width)) for label in labels]
    actions = fill([label.actions for label in labels])
    if classes is not None:
        actions = torch.nn.functional.pad(actions[..., [number - 1 for number in classes]], (0, CLASS_COUNT - len(classes)))
    tracks = TrackBatch(
        pose=torch.where(present, normalise_pose(pose, mean_std.float()), 0.0).unsqueeze(0),
        detected=detected.unsqueeze(0),
        joints=fill([track.joints + track.camera[:, None] for track in columns]).unsqueeze(0),
        appearance=fill(features).unsqueeze(0),
    )
    return TrackletClip(
        tracks=tracks,
        targets=ClipTargets(pose, detected, fill([label.labelled for label in labels]), actions),
        frames=fill([track.frames for track in columns]),
        names=(*ego.names[:length], *["-1"] * (frames - length)),
        boxes=fill([ego.boxes])[:, 0],
        sizes=fill([ego.sizes])[:, 0],
        confidences=fill([ego.confidences])[:, 0, 0],
    )


def _require_labels(track: Tracklet) -> TrackletLabels:
    if track.labels is None:
        raise ValueError("labels: a track out of a tracker's results has neither labels nor appearance; see read_tracklet")
    return track.labels


def shuffle(other_tracks: Sequence[Tracklet], seed: int) -> list[Tracklet]:
    return random.Random(seed).sample(other_tracks, len(other_tracks))


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
