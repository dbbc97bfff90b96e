"""Tracks of people: out of a tracker's results, out of LART's training files, and as the clips that LART sees."""

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

from models.media.safe_joblib import UnsafeFile, read_joblib
from models.people.ava import CLASSES, VALID
from models.people.track_batch import POSE, Tracks, normalise_pose

Floats = NDArray[np.float64]
DEPTH_UNIT = 200.0
"""Depths are divided by this, in poses and in cameras."""
JOINTS = 45
PEOPLE_LABELS = 2
"""`labelled` where people gave the labels; 1 where a network did, 0 where nobody."""


@dataclass(frozen=True)
class Labels:
    """Contents of a training file besides the track; all arrays have a row for each frame."""

    labelled: Floats
    """(L,)."""
    actions: Floats
    """(L, 80) of 0..1, people's where there are any, else a network's."""
    appearance: Floats
    """(L, A), zeros where there is none."""


@dataclass(frozen=True)
class Tracklet:
    """One person over L frames; frames in which they were not observed are zeros."""

    frames: Floats
    """(L,), counted as the source does; people of one clip are aligned by it."""
    pose: Floats
    """(L, 229), raw."""
    joints: Floats
    """(L, 45, 3), relative to the body."""
    camera: Floats
    """(L, 3), the depth divided by 200."""
    crop_camera: Floats
    """(L, 3)."""
    detected: Floats
    """(L,) of 0 and 1."""
    names: tuple[str, ...]
    """Names of the frames."""
    sizes: Floats
    """(L, 2), heights and widths of the frames."""
    boxes: Floats
    """(L, 4), x, y, width, height in pixels."""
    confidences: Floats
    """(L,)."""
    labels: Labels | None = None

    def __len__(self) -> int:
        return len(self.frames)


def read_results(path: Path) -> dict[Any, dict[str, Any]]:
    """A tracker's results, frame by frame in order. Raises UnsafeFile."""
    content = read_joblib(path)
    if not isinstance(content, dict) or not all(isinstance(frame, dict) and "tracked_ids" in frame for frame in content.values()):
        raise UnsafeFile(f"{path}: no results of a tracker, which are a dict of frames with `tracked_ids`")
    return content


def tracks_of(results: Mapping[Any, Mapping[str, Any]]) -> dict[int, Tracklet]:
    """The tracks in a tracker's results, by number. Frames where a track was only predicted count as not observed."""
    seen: dict[int, dict[int, tuple[Mapping[str, Any], int]]] = {}  # track → position of the frame → where it stands in it
    wanted = {number for frame in results.values() for number in frame["tracked_ids"]}
    for position, frame in enumerate(results.values()):
        for place, (number, age) in enumerate(zip(frame["tid"], frame["tracked_time"], strict=True)):
            if number in wanted and age == 0:
                seen.setdefault(number, {})[position] = (frame, place)
    names = [str(name) for name in results]
    return {number: _track(observed, names) for number, observed in sorted(seen.items())}


def _track(observed: Mapping[int, tuple[Mapping[str, Any], int]], names: Sequence[str]) -> Tracklet:
    first, last = min(observed), max(observed)
    length = last - first + 1
    rows = np.array(sorted(observed)) - first
    in_order = [observed[position] for position in sorted(observed)]

    def gather(key: str, *shape: int) -> Floats:
        values = np.zeros((length, *shape))
        values[rows] = np.stack([np.asarray(frame[key][place], np.float64).reshape(shape) for frame, place in in_order])
        return values

    people = [frame["smpl"][place] for frame, place in in_order]
    camera = gather("camera", 3)
    camera[:, 2] /= DEPTH_UNIT
    pose, detected = np.zeros((length, POSE)), np.zeros(length)
    pose[rows, :226] = np.stack(
        [np.concatenate([np.ravel(person[part]) for part in ("global_orient", "body_pose", "betas")]) for person in people]
    )
    pose[:, 226:] = camera
    detected[rows] = 1
    return Tracklet(
        frames=np.arange(first, last + 1, dtype=np.float64),
        pose=pose,
        joints=gather("3d_joints", JOINTS, 3),
        camera=camera,
        crop_camera=gather("camera_bbox", 3),
        detected=detected,
        names=tuple(names[first : last + 1]),
        sizes=gather("size", 2),
        boxes=gather("bbox", 4),
        confidences=gather("conf"),
    )


def read_tracklet(path: Path) -> Tracklet:
    """A track of LART's training data. Raises UnsafeFile."""
    content = read_joblib(path)
    try:
        return Tracklet(
            frames=_rows(content["fid"]),
            pose=_rows(content["pose_shape"], POSE),
            joints=_rows(content["3d_joints"], JOINTS, 3),
            camera=_rows(content["camera"], 3),
            crop_camera=_rows(content["camera_bbox"], 3),
            detected=_rows(content["has_detection"]),
            names=tuple(map(str, content["frame_name"])),
            sizes=_rows(content["frame_size"], 2),
            boxes=_rows(content["frame_bbox"], 4),
            confidences=_rows(content["frame_conf"]),
            labels=_labels(content),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UnsafeFile(f"{path}: no track of LART's training data ({type(error).__name__}: {error})") from error


def _rows(values: Any, *shape: int) -> Floats:
    return np.asarray(values, np.float64).reshape(-1, *shape)


def _labels(content: Mapping[str, Any]) -> Labels:
    index = np.asarray(content["apperance_index"], np.int64).reshape(-1)
    labelled = _rows(content["has_gt"])
    guessed = _looked_up(content["action_label_psudo"], index, CLASSES)
    given = _rows(content["action_label_gt"], CLASSES)
    width = next((np.size(value) for value in content["apperance_dict"].values()), 0)
    return Labels(
        labelled=labelled,
        actions=np.where(labelled[:, None] == PEOPLE_LABELS, given, guessed),
        appearance=_looked_up(content["apperance_dict"], index, width),
    )


def _looked_up(table: Mapping[int, Any], index: NDArray[np.int64], width: int) -> Floats:
    """Rows (L, width) of a table by index, zeros for -1."""
    keys = sorted(table)
    rows = np.stack([np.zeros(width), *(np.asarray(table[key], np.float64).reshape(width) for key in keys)])
    place = {-1: 0, **{key: row for row, key in enumerate(keys, start=1)}}
    return rows[[place[key] for key in index.tolist()]]


@dataclass(frozen=True)
class Targets:
    """Targets of a clip in training and evaluation; all arrays are (T, P, ·)."""

    pose: Tensor
    """(T, P, 229), raw."""
    detected: Tensor
    labelled: Tensor
    """(T, P, 1)."""
    actions: Tensor
    """(T, P, 80): of a model of 60 classes these come first, zeros after."""


@dataclass(frozen=True)
class Clip:
    """A track and the other people of its clip, T frames; person 0 is the one that the clip is about."""

    tracks: Tracks
    """(1, T, P, ·), normalised."""
    targets: Targets
    frames: Tensor
    """(T, P, 1), the tracks' frame numbers."""
    names: tuple[str, ...]
    """Names of the frames; "-1" for padding."""
    boxes: Tensor
    sizes: Tensor
    confidences: Tensor
    """Boxes, frame sizes and confidences of person 0: (T, 4), (T, 2) and (T,)."""


def arrange(
    ego: Tracklet,
    others: Sequence[Tracklet] = (),
    *,
    frames: int,
    people: int,
    mean_std: Tensor,
    classes: Sequence[int] | None = VALID,
    appearance: int | None = None,
    training: bool = False,
) -> Clip:
    """Put a track and the first of the others into a clip, as the published loader does.

    frames, people: T and P. mean_std: (2, 1, K), of the pose. classes: AVA's numbers of the model's classes; None for all 80.
    appearance: A, values of a feature; None for those that the tracks have, of whom one at least must have some.
    training: one frame less of tracks that are not longer than T + 1. Others are shuffled by the caller; those that begin before and end
    after the ego's slice, that do not meet it, or that have one frame, leave their place empty.
    Raises ValueError for an ego of one frame or none, which the published loader skips.
    """
    if len(ego) < 2:
        raise ValueError("a track of one frame or none makes no clip")
    length = min(frames, len(ego) - 1 if training and len(ego) <= frames + 1 else len(ego))
    rows = np.full((frames, people), -1)  # which row of its track each token shows
    rows[:length, 0] = np.arange(length)
    begin, end = ego.frames[0], ego.frames[length - 1]
    shown = others[: people - 1]
    for slot, other in enumerate(shown, start=1):
        if len(other) > 1 and not (other.frames[0] < begin and other.frames[-1] > end):
            inside = np.flatnonzero((other.frames >= begin) & (other.frames <= end))
            rows[(other.frames[inside] - begin).astype(np.int64), slot] = inside
    columns = [ego, *shown]

    def fill(values: Sequence[Floats]) -> Tensor:
        """One array a person, (L, ·) → (T, P, ·), zeros where nobody is."""
        filled = np.zeros((frames, people, *values[0].shape[1:]))
        for slot, value in enumerate(values):
            filled[rows[:, slot] >= 0, slot] = value[rows[rows[:, slot] >= 0, slot]]
        return torch.from_numpy(filled).float().flatten(2) if filled.ndim > 2 else torch.from_numpy(filled).float().unsqueeze(2)

    pose, detected = fill([track.pose for track in columns]), fill([track.detected for track in columns])
    present = torch.from_numpy(rows >= 0).unsqueeze(2)
    labels = [_labels_of(track) for track in columns]
    width = appearance or max(label.appearance.shape[1] for label in labels)
    looks = [label.appearance if label.appearance.shape[1] else np.zeros((len(label.labelled), width)) for label in labels]
    actions = fill([label.actions for label in labels])
    if classes is not None:
        actions = torch.nn.functional.pad(actions[..., [number - 1 for number in classes]], (0, CLASSES - len(classes)))
    tracks = Tracks(
        pose=torch.where(present, normalise_pose(pose, mean_std.float()), 0.0).unsqueeze(0),
        detected=detected.unsqueeze(0),
        joints=fill([track.joints + track.camera[:, None] for track in columns]).unsqueeze(0),
        appearance=fill(looks).unsqueeze(0),
    )
    return Clip(
        tracks=tracks,
        targets=Targets(pose, detected, fill([label.labelled for label in labels]), actions),
        frames=fill([track.frames for track in columns]),
        names=(*ego.names[:length], *["-1"] * (frames - length)),
        boxes=fill([ego.boxes])[:, 0],
        sizes=fill([ego.sizes])[:, 0],
        confidences=fill([ego.confidences])[:, 0, 0],
    )


def _labels_of(track: Tracklet) -> Labels:
    if track.labels is None:
        raise ValueError("labels: a track out of a tracker's results has neither labels nor appearance; see read_tracklet")
    return track.labels


def shuffled(others: Sequence[Tracklet], seed: int) -> list[Tracklet]:
    """The other people of a clip in an order of chance."""
    return random.Random(seed).sample(others, len(others))
