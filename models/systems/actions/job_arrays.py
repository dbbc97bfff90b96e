"""The arrays of a job → the source of its people, a video or tracks; and their tracks → the arrays of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from models.layers.stepwise import InvalidInput, Tensors
from models.media.video import ClipInfo, ClipLimits
from models.systems.actions.detection_scale import Detail
from models.systems.actions.person_tracks import PersonTrack, TrackDetection
from models.systems.actions.pipeline import ActionPipeline
from models.systems.actions.sources import TrackSource, VideoSource


def make_source(job: Tensors, options: Mapping[str, Any], model: ActionPipeline) -> VideoSource | TrackSource:
    """Make the source of a job from its arrays: `info` float64 (5,), width, height, frames per second, frames and seconds; and either
    `video` uint8 (bytes,) or tracks. Tracks are `person` int32 (K,), `time` float64 (K,), `box` float32 (K, 5), and either `pose`
    float32 (K, 51) or `token` float32 (K, D); the other one is empty.

    Raises UnusableInput if the tracks lack what the network needs.
    """
    width, height, fps, frames, duration = job["info"].tolist()
    start, end = float(options.get("start_s") or 0.0), options.get("end_s")
    if "video" in job:
        info = ClipInfo(int(width), int(height), fps, int(frames), duration)
        until = duration if end is None else float(end)
        video, detail = job["video"].cpu().numpy(), detail_of(options, model)
        limits, side = ClipLimits.from_accepted(info.width, info.height), model.pose_estimator.long_side(detail)
        return VideoSource(video, info, model.rate, model.rows(detail), limits, start=start, end=until, long_side=side)
    arrays = {name: job[name].cpu().numpy() for name in ("person", "time", "box", "pose", "token")}
    arrays["token"] = _tokens(arrays, (int(height), int(width)), model)
    in_range = (arrays["time"] >= start) & (arrays["time"] < (np.inf if end is None else float(end)))
    rows = np.round(arrays["time"] * model.rate).astype(np.int64)
    found = _sightings(arrays, rows, in_range, longest=max(1, round(model.rate)))
    return TrackSource(found, model.rows("fast"), int(rows[in_range].min()) if in_range.any() else 0)


def detail_of(options: Mapping[str, Any], model: ActionPipeline) -> Detail:
    return cast(Detail, options.get("detail") or model.config.detail)


def _tokens(arrays: Mapping[str, np.ndarray], size: tuple[int, int], model: ActionPipeline) -> np.ndarray:
    """Return the tokens (K, D) that were sent, or compute them from the poses. Raises InvalidInput if neither is possible."""
    values = sum(model.values.values())
    if not len(arrays["person"]):
        return np.zeros((0, values), np.float32)
    if arrays["token"].shape[1]:
        if arrays["token"].shape[1] != values:
            raise InvalidInput(f"tracks: tokens of {arrays['token'].shape[1]} values where this bundle takes {values}")
        return arrays["token"]
    made = model.pose_estimator.tokens(arrays["box"], arrays["pose"], size) if arrays["pose"].shape[1] else None
    if made is not None:
        return made
    if arrays["pose"].shape[1]:
        raise InvalidInput(f"tracks: poses are not enough for this bundle: send an .npz with `token`, {values} values for each sighting")
    raise InvalidInput(f"tracks: no poses: send them with the boxes, or an .npz with `token`, {values} values for each sighting")


def _sightings(arrays: Mapping[str, np.ndarray], rows: np.ndarray, in_range: np.ndarray, longest: int) -> list[TrackDetection]:
    """Return one detection per person and row, the last if several fall on one row. A detection lasts until the person's next one if the
    gap is of the usual length and at most `longest` rows; otherwise one row."""
    found: list[TrackDetection] = []
    for person in np.unique(arrays["person"][in_range]):
        indices = np.flatnonzero(in_range & (arrays["person"] == person))
        indices = indices[np.argsort(arrays["time"][indices], kind="stable")]
        indices = indices[np.append(np.diff(rows[indices]) > 0, True)]
        gaps = np.append(np.diff(rows[indices]), 1)
        usual = int(np.median(gaps[:-1])) if len(gaps) > 1 else 1
        for i, gap in zip(indices, gaps, strict=True):
            time = arrays["time"][i : i + 1]
            pose = arrays["pose"][i]
            found.append(
                TrackDetection(
                    person=int(person),
                    row=int(rows[i]),
                    rows=int(gap) if gap <= min(usual + 1, longest) else 1,
                    token=arrays["token"][i].astype(np.float32),
                    box=np.concatenate([time, arrays["box"][i]]),
                    pose=np.concatenate([time, pose]) if len(pose) else pose.astype(np.float64),
                )
            )
    return sorted(found, key=lambda one: (one.row, one.person))


POSE_ROW = 53


def track_arrays(tracks: Sequence[PersonTrack], rate: float, actions: int, since: float = 0.0) -> dict[str, Tensor]:
    """Convert tracks, sorted by first appearance, to arrays: a row for each detection and for each second of a person. People are
    numbered by first appearance.

    boxes float64 (K, 7): person, seconds, x, y, width, height, score; poses float64 (K, 53): person, seconds, and x, y and score of COCO's
    17 keypoints, or (0, 53); seconds float64 (S, 3): person, begin and end; scores float32 (S, actions).

    actions: number of labels. since: rows before these seconds are left out."""
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
