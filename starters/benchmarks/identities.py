"""How often people change numbers in four synchronised views of two people: `python -m starters.benchmarks.identities`.

The clips are those of PyPI pose2sim 0.10.49 (Demo_MultiPerson); what `bundles/movenet` saw in them is recorded in
`tests/models/systems/phalp/recorded`. The truth comes from the cameras' calibration, not from any tracker: in each frame those sightings of
the views are one person whose keypoints meet in space, and a person is where they were a moment before. A switch is a change of the number
that a view gives to one person.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment

from models.people.keypoints import Poses, suppress_duplicates
from models.systems.phalp.keypoint_tracker import PoseTracker
from starters.make.measure_pose_noise import CLIPS, Camera, Floats, cameras
from training.data.packages import obtain

CALIBRATION = "Pose2Sim/Demo_MultiPerson/calibration/Calib.qca.txt"
RECORDED = Path("tests/models/systems/phalp/recorded/poses.npz")
VIEWS = (1, 2, 3, 4)
LEAST_SCORE = 0.3
MOST_PIXELS = 60.0
"""Median distance, in a frame of 1920 pixels, of keypoints from where their common point in space is seen."""
LEAST_KEYPOINTS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(".cache/data"))
    parser.add_argument("--every", type=int, default=4, help="every so many of the 60 frames a second are looked at")
    asked = parser.parse_args()
    views = cameras(obtain(CLIPS, asked.cache) / CALIBRATION)
    seen = [recorded(view, asked.every) for view in VIEWS]
    numbers = [_tracked(view, asked.every, poses) for view, poses in zip(VIEWS, seen, strict=True)]
    told: dict[tuple[int, int], list[int]] = defaultdict(list)
    for frame, people in enumerate(truth(views, seen)):
        for person, sightings in people.items():
            for view, sighting in sightings.items():
                told[person, view].append(numbers[view][frame][sighting])
    for (person, view), mine in sorted(told.items()):
        switches = sum(before != after for before, after in itertools.pairwise(mine))
        print(f"person {person + 1}, view {view + 1}: seen in {len(mine)} of {len(seen[view])} frames, {switches} switches")


def recorded(view: int, every: int) -> list[Poses]:
    with np.load(RECORDED) as arrays:
        rows, frames = arrays[f"multi{view}.rows"].astype(np.float32), arrays[f"multi{view}.frames"]
        count = int(arrays[f"multi{view}.size"][3])
    return [suppress_duplicates(Poses.from_rows(rows[frames == frame]), min_score=0.25) for frame in range(0, count, every)]


def _tracked(view: int, every: int, seen: Sequence[Poses]) -> list[tuple[int, ...]]:
    """The number of each sighting."""
    with np.load(RECORDED) as arrays:
        width, height, rate, _ = arrays[f"multi{view}.size"].tolist()
    tracker = PoseTracker(width, height, rate / every)
    return [tracker.update(poses) for poses in seen]


def truth(views: Sequence[Camera], seen: Sequence[Sequence[Poses]]) -> list[Mapping[int, Mapping[int, int]]]:
    """For each frame: person → view → which sighting is theirs. Whoever fewer than three views see is left out."""
    places: dict[int, Floats] = {}
    frames: list[Mapping[int, Mapping[int, int]]] = []
    for poses in zip(*seen, strict=True):
        groups = _groups(views, poses)
        known = sorted(places)
        distances = np.array([[np.linalg.norm(place - places[person]) for person in known] for _, place in groups]).reshape(len(groups), -1)
        rows, columns = linear_sum_assignment(distances)
        names = {int(row): known[column] for row, column in zip(rows, columns, strict=True)}
        people = {}
        for row, (sightings, place) in enumerate(groups):
            person = names.get(row, len(places))
            places[person], people[person] = place, sightings
        frames.append(people)
    return frames


def _groups(views: Sequence[Camera], poses: Sequence[Poses]) -> list[tuple[dict[int, int], Floats]]:
    """Sightings of one person each, those that meet best in space first, and where that is."""
    choices = itertools.product(*([None, *range(len(one))] for one in poses))
    candidates = []
    for choice in choices:
        sightings = {view: sighting for view, sighting in enumerate(choice) if sighting is not None}
        if len(sightings) >= 3 and (met := _meeting(views, poses, sightings)) is not None:
            candidates.append((-len(sightings), met[0], sightings, met[1]))
    found: list[tuple[dict[int, int], Floats]] = []
    for _, _, sightings, place in sorted(candidates, key=lambda one: one[:2]):
        if all(sightings.get(view) != taken for other, _ in found for view, taken in other.items()):
            found.append((sightings, place))
    return found


def _meeting(views: Sequence[Camera], poses: Sequence[Poses], sightings: Mapping[int, int]) -> tuple[float, Floats] | None:
    """Median distance in pixels of keypoints from where their point in space is seen, and the mean of the points; None: not one person."""
    keypoints = np.stack([poses[view].keypoints[sighting] for view, sighting in sightings.items()]).astype(np.float64)  # (V, 17, 3)
    sure = (keypoints[..., 2] >= LEAST_SCORE).all(axis=0)
    if sure.sum() < LEAST_KEYPOINTS:
        return None
    pixels = keypoints[:, sure, :2]
    equations = []
    for view, mine in zip(sightings, pixels, strict=True):
        ideal, pose = views[view].undistorted(mine), views[view].pose
        equations += [ideal[:, :1] * pose[2] - pose[0], ideal[:, 1:] * pose[2] - pose[1]]
    solved = np.linalg.svd(np.stack(equations, axis=1))[2][:, -1]  # (K, 4)
    points = solved[:, :3] / solved[:, 3:]
    errors = [np.linalg.norm(views[view].projected(points) - mine, axis=1) for view, mine in zip(sightings, pixels, strict=True)]
    error = float(np.median(errors))
    return (error, points.mean(axis=0)) if error < MOST_PIXELS else None


if __name__ == "__main__":
    main()
