"""How wrong the poses of the bundle `movenet` are: against points that four calibrated cameras agree on.

`python -m starters.make.measure_pose_noise` prints the errors, by which `starters/recipes/actions.yaml` disturbs its poses, at each size
that a pipeline's `detail` asks for. The clips are those of PyPI `pose2sim`: one man, 100 frames.
"""

from __future__ import annotations

import argparse
import json
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from models import bundle
from models.loading import load
from models.people.keypoints import KEYPOINT_COUNT, MIRRORED, Poses
from models.systems.onnx.pose_detector import PoseGraph
from training.data.packages import PyPIPackage, obtain
from training.errors import DataError

Floats = NDArray[np.float64]

CLIPS = PyPIPackage(name="pose2sim", version="0.10.49", sha256="403e0dc4065898ba6a595e72a8970950310979253d60e24c2e00b16b36bf21e1")
FOLDER = "Pose2Sim/Demo_SinglePerson"
LONG_SIDES = (320, 448, 640)
"""Pixels, of `detail` fast, standard and high."""
LEAST_HEIGHT = 0.25
"""Share of the frame's height: the man is nearer than everybody else in the laboratory."""
LEAST_VIEWS = 3
SURE = 0.5
"""Keypoints of at least this score are triangulated; all are compared."""
SCORES = (0.0, 0.2, 0.4, 0.6, 1.0)
"""Bounds of the groups of scores."""
FAR = 0.15
"""Heights of the box beyond which a keypoint is an outlier and tells nothing of the usual error."""


@dataclass(frozen=True)
class Camera:
    matrix: Floats
    """(3, 3), pixels."""
    distortion: Floats
    pose: Floats
    """(3, 4), from metres of the room to the camera."""

    def undistorted(self, points: Floats) -> Floats:
        """Pixels (N, 2) → directions (N, 2), x and y at depth 1."""
        return np.asarray(cv2.undistortPoints(points.reshape(-1, 1, 2), self.matrix, self.distortion)[:, 0], np.float64)

    def projected(self, points: Floats) -> Floats:
        """Metres (N, 3) → pixels (N, 2)."""
        turn, move = cv2.Rodrigues(self.pose[:, :3])[0], self.pose[:, 3]
        return np.asarray(cv2.projectPoints(points, turn, move, self.matrix, self.distortion)[0][:, 0], np.float64)


def cameras(calibration: Path) -> list[Camera]:
    """Qualisys' file: its cameras look along -z with y up, ours along z with y down."""
    found = []
    for node in ElementTree.parse(calibration).getroot().iter("camera"):
        intrinsic, transform = (_numbers(node, name) for name in ("intrinsic", "transform"))
        pixels = {name: value / 64 for name, value in intrinsic.items()}
        matrix = np.array(
            [[pixels["focalLengthU"], 0, pixels["centerPointU"]], [0, pixels["focalLengthV"], pixels["centerPointV"]], [0, 0, 1]]
        )
        distortion = [intrinsic[f"{kind}Distortion{number}"] for kind in ("radial", "tangental") for number in (1, 2)]
        turn = np.array([[transform[f"r{row}{column}"] for column in (1, 2, 3)] for row in (1, 2, 3)])
        place = np.array([transform[name] for name in "xyz"]) / 1000
        turn = np.diag([1.0, -1.0, -1.0]) @ turn
        found.append(Camera(matrix, np.array(distortion), np.column_stack([turn, -turn @ place])))
    return found


def _numbers(node: ElementTree.Element, name: str) -> dict[str, float]:
    child = node.find(name)
    if child is None:
        raise DataError(f"the calibration has no {name}")
    return {key: float(value) for key, value in child.attrib.items() if _is_number(value)}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def people(model: PoseGraph, clip: Path, long_side: int, every: int) -> list[Poses]:
    """The man in every so many frames, scaled to `long_side` pixels; nobody where he is not found."""
    with av.open(str(clip)) as container:
        frames = (torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in islice(container.decode(video=0), 0, None, every))
        return [_tallest(model.find(frame[None], long_side=long_side)[0], LEAST_HEIGHT * frame.shape[0]) for frame in frames]


def _tallest(seen: Poses, least: float) -> Poses:
    """The tallest person of at least so many pixels: at larger sizes those who stand behind are seen, too."""
    heights = seen.boxes[:, 3]
    order = np.argsort(-heights, kind="stable")
    return Poses.from_rows(seen.to_rows()[order[heights[order] >= least][:1]])


def triangulated(views: list[tuple[Camera, Floats]]) -> Floats:
    """The point (3,), in metres, that pixels (2,) of several cameras agree on best (direct linear transform)."""
    rows = []
    for camera, pixel in views:
        x, y = camera.undistorted(pixel[None])[0]
        rows += [x * camera.pose[2] - camera.pose[0], y * camera.pose[2] - camera.pose[1]]
    solution = np.linalg.svd(np.array(rows))[2][-1]
    return np.asarray(solution[:3] / solution[3])


def errors(seen: list[Poses], used: list[Camera]) -> Floats:
    """One frame from all cameras → (cameras, 17, 17, 2): from the true place of the second keypoint to where the first was seen, in heights
    of the box; NaN where the truth or the person is missing."""
    found = np.full((len(used), KEYPOINT_COUNT, KEYPOINT_COUNT, 2), np.nan)
    truth = np.full((KEYPOINT_COUNT, 3), np.nan)
    for keypoint in range(KEYPOINT_COUNT):
        views = [
            (camera, poses.keypoints[0, keypoint, :2].astype(np.float64))
            for camera, poses in zip(used, seen, strict=True)
            if len(poses) and poses.keypoints[0, keypoint, 2] >= SURE
        ]
        if len(views) >= LEAST_VIEWS:
            truth[keypoint] = triangulated(views)
    known = np.flatnonzero(~np.isnan(truth[:, 0]))
    for view, (camera, poses) in enumerate(zip(used, seen, strict=True)):
        if len(poses) and len(known):
            off = poses.keypoints[0, :, None, :2] - camera.projected(truth[known])[None]  # (17, known, 2)
            found[view][:, known] = off / poses.boxes[0, 3]
    return found


def measure(model: PoseGraph, folder: Path, long_side: int, every: int) -> dict[str, Any]:
    used = cameras(next((folder / "calibration").glob("*.txt")))
    clips = [people(model, clip, long_side, every) for clip in sorted((folder / "videos").glob("*.mp4"))]
    off = np.stack([errors(list(seen), used) for seen in zip(*clips, strict=True)])  # (frames, cameras, 17, 17, 2)
    own = off[:, :, np.arange(KEYPOINT_COUNT), np.arange(KEYPOINT_COUNT)]  # (frames, cameras, 17, 2)
    other = off[:, :, np.arange(KEYPOINT_COUNT), np.array(MIRRORED)]
    distance, crossed = np.linalg.norm(own, axis=-1), np.linalg.norm(other, axis=-1)
    scores = np.stack([[_scores(poses) for poses in seen] for seen in zip(*clips, strict=True)])
    rows = []
    for low, high in pairwise(SCORES):
        chosen = (scores >= low) & (scores < high) & ~np.isnan(distance)
        near = distance[chosen & (distance < FAR)]
        rows.append(
            {
                "scores": [low, high],
                "keypoints": int(chosen.sum()),
                "std": _rounded(np.sqrt((near**2).mean() / 2)) if len(near) else None,
                "far": _rounded((distance[chosen] >= FAR).mean()) if chosen.any() else None,
            }
        )
    limbs = np.arange(KEYPOINT_COUNT) >= 5
    apart = np.linalg.norm(own - other, axis=-1) > 0.05  # left and right are told apart in this view
    asked = apart & limbs & ~np.isnan(crossed) & ~np.isnan(distance)
    steady = own - np.nanmean(own, axis=0)
    boxes = np.stack([poses.to_rows()[0] for clip in clips for poses in clip if len(poses)])
    return {
        "long_side": long_side,
        "frames": int(len(off) * len(used)),
        "missed": _rounded(np.mean([not len(poses) for clip in clips for poses in clip])),
        "by_score": rows,
        "std_over_time": _rounded(np.sqrt(np.nanmean(np.where(distance[..., None] < FAR, steady, np.nan) ** 2))),
        "swapped": _rounded((crossed < 0.5 * distance)[asked].mean()),
        "score_mean": _rounded(scores.mean()),
        "score_std": _rounded(scores.std()),
        "margins": [_rounded(value) for value in _margins(boxes)],
    }


def _scores(poses: Poses) -> Floats:
    return poses.keypoints[0, :, 2].astype(np.float64) if len(poses) else np.zeros(KEYPOINT_COUNT)


def _margins(rows: Floats) -> Floats:
    """Margins of the box beyond the keypoints on its left, top, right and bottom, on average, in heights of the box."""
    poses = Poses.from_rows(rows)
    low, high = poses.keypoints[:, :, :2].min(axis=1), poses.keypoints[:, :, :2].max(axis=1)
    corners = np.concatenate([low - poses.boxes[:, :2], poses.boxes[:, :2] + poses.boxes[:, 2:4] - high], axis=1)
    return np.asarray((corners / poses.boxes[:, 3:4]).mean(axis=0))


def _rounded(value: Any) -> float:
    return round(float(value), 4)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m starters.make.measure_pose_noise", description="Measure errors of the bundle movenet.")
    parser.add_argument("--bundle", type=Path, default=Path("bundles/movenet/1.0.0"))
    parser.add_argument("--cache", type=Path, default=Path(".cache/data"), help="where packages are kept (default: %(default)s)")
    parser.add_argument("--long-side", type=int, nargs="*", default=LONG_SIDES, help="pixels of frames (default: %(default)s)")
    parser.add_argument("--every", type=int, default=1, help="look at every so many frames (default: %(default)s)")
    options = parser.parse_args()
    try:
        model = load(bundle.read(options.bundle)).model
        assert isinstance(model, PoseGraph)
        for long_side in options.long_side:
            print(json.dumps(measure(model, obtain(CLIPS, options.cache) / FOLDER, long_side, options.every), indent=2), flush=True)
    except (DataError, bundle.BundleError, OSError) as error:
        sys.exit(f"pose_noise: {error}")


if __name__ == "__main__":
    main()
