"""Tracks of people from 2D poses alone: on made-up paths, and on what MoveNet saw in real clips.

`recorded/poses.npz` holds the skeletons and boxes that the bundle `movenet` found in the clips of PyPI sports2d 0.8.34 and pose2sim
0.10.49, `recorded/marks.json` who is who in every tenth frame, marked by eye; its boxes are the detector's. Pictures are not kept.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.people.keypoints import KEYPOINT_COUNT, TOKEN_VALUES, Poses, box_iou, suppress_duplicates
from models.systems.actions.pose_estimator import (
    IdentityTracker,
    PersonObservations,
    location_config,
    location_vectors,
)

Tracks = dict[int, dict[int, NDArray[np.floating]]]
"""Number of a person → frame → box. Only of people who were confirmed."""

RECORDED = Path(__file__).parent / "recorded"
WIDTH, HEIGHT = 640, 360


def poses_at(*places: tuple[float, float], tall: float = 120.0) -> Poses:
    """Upright people with the middles of their boxes at these places."""
    boxes = np.array([[x - tall / 6, y - tall / 2, tall / 3, tall, 0.9] for x, y in places]).reshape(-1, 5)
    middles = np.repeat(boxes[:, None, :2] + boxes[:, None, 2:4] / 2, KEYPOINT_COUNT, axis=1)
    keypoints = np.concatenate([middles, np.ones((len(boxes), KEYPOINT_COUNT, 1))], axis=2)
    return Poses(keypoints, boxes)


def observe(poses: Poses, width: float, height: float) -> PersonObservations:
    return PersonObservations(
        poses.boxes.astype(np.float32),
        poses.keypoints.reshape(-1, 3 * KEYPOINT_COUNT).astype(np.float32),
        np.zeros((len(poses), TOKEN_VALUES), np.float32),
        location_vectors(poses, width, height),
    )


def follow(frames: Sequence[Poses], width: float, height: float, rate: float, *, cuts: Sequence[int] = ()) -> Tracks:
    """Track the people of a whole video, as the service does frame by frame."""
    tracker = IdentityTracker(location_config(rate))
    tracks: Tracks = {}
    confirmed = set[int]()
    for index, poses in enumerate(frames):
        numbers = tracker.update(observe(poses, width, height), index, cut=index in cuts)
        for number, box in zip(numbers, poses.boxes, strict=True):
            tracks.setdefault(number, {})[index] = box
        confirmed |= tracker.confirmed
    return {number: track for number, track in tracks.items() if number in confirmed}


def test_two_who_walk_past_each_other_keep_their_numbers() -> None:
    frames = [poses_at((100 + 8 * time, 180), (500 - 8 * time, 200)) for time in range(45)]
    first, second = follow(frames, WIDTH, HEIGHT, 15).values()
    assert list(first) == list(second) == list(range(45))
    np.testing.assert_allclose(np.diff([box[0] for box in first.values()]), 8, atol=1e-3)
    np.testing.assert_allclose(np.diff([box[0] for box in second.values()]), -8, atol=1e-3)


def test_person_hidden_for_a_while_keeps_identity() -> None:
    frames = [poses_at((100 + 4 * time, 180)) if not 20 <= time < 32 else poses_at() for time in range(60)]
    (track,) = follow(frames, WIDTH, HEIGHT, 15).values()
    assert list(track) == [*range(20), *range(32, 60)]


@pytest.mark.parametrize("rate", [10.0, 30.0])
def test_a_track_waits_for_seconds_not_for_frames(rate: float) -> None:
    def people(gap: int) -> int:
        seen = [poses_at((300, 180))] * 12
        return len(follow([*seen, *[poses_at()] * gap, *seen], WIDTH, HEIGHT, rate))

    assert people(round(3 * rate)) == 1
    assert people(round(4 * rate)) == 2


def test_no_track_goes_on_across_a_cut() -> None:
    frames = [poses_at((200 + time, 180)) for time in range(30)]
    assert len(follow(frames, WIDTH, HEIGHT, 15)) == 1
    before, after = follow(frames, WIDTH, HEIGHT, 15, cuts=[18]).values()
    assert (list(before), list(after)) == (list(range(18)), list(range(18, 30)))


def test_a_person_seen_for_an_instant_is_no_track() -> None:
    frames = [poses_at((100, 180), (500, 180)) if time in (7, 8) else poses_at((100, 180)) for time in range(20)]
    assert [len(track) for track in follow(frames, WIDTH, HEIGHT, 15).values()] == [20]


def test_an_empty_video_has_no_people() -> None:
    assert follow([poses_at()] * 5, WIDTH, HEIGHT, 15) == {}


def test_a_copy_of_a_tracker_goes_on_by_itself() -> None:
    def see(tracker: IdentityTracker, row: int) -> frozenset[int]:
        tracker.update(observe(poses_at((100 + row, 180)), WIDTH, HEIGHT), row)
        return tracker.confirmed

    tracker = IdentityTracker(location_config(15))
    for row in range(4):
        assert see(tracker, row) == frozenset()
    other = copy.deepcopy(tracker)
    assert see(other, 4) == {1}
    assert tracker.confirmed == frozenset()


CLIPS = ("sports2d", *(f"{kind}{camera}" for kind in ("single", "multi") for camera in (1, 2, 3, 4)))


def load_recording(clip: str, every: int) -> tuple[list[Poses], tuple[int, int, float]]:
    """Return every n-th frame of a clip with its width, height and frames a second."""
    with np.load(RECORDED / "poses.npz") as arrays:
        rows, frames = arrays[f"{clip}.rows"].astype(np.float32), arrays[f"{clip}.frames"]
        width, height, rate, count = arrays[f"{clip}.size"].tolist()
    seen = [suppress_duplicates(Poses.from_rows(rows[frames == frame]), min_score=0.25) for frame in range(0, count, every)]
    return seen, (width, height, rate / every)


def numbers(tracks: Tracks, marks: Mapping[str, list[int]], every: int) -> list[int]:
    """Return the track on a person's mark in each marked frame, in order; frames without one are left out."""
    found = []
    for frame, mark in sorted((int(frame), mark) for frame, mark in marks.items()):
        if frame % every:
            continue
        boxes = {person: track[frame // every] for person, track in tracks.items() if frame // every in track}
        over = {person: float(box_iou(box[None, :4], np.array([mark], np.float64))[0, 0]) for person, box in boxes.items()}
        found += [person for person, overlap in over.items() if overlap > 0.5 and overlap == max(over.values())]
    return found


def switches(found: list[int]) -> int:
    return sum(before != after for before, after in itertools.pairwise(found))


@pytest.mark.parametrize("every", [1, 2])
def test_two_people_outdoors_are_one_track_each_over_the_clip(every: int) -> None:
    """The first person jumps off a wall, is not detected for two seconds of flight, lands and rolls, while the other walks past."""
    seen, video = load_recording("sports2d", every)
    tracks = follow(seen, *video)
    marks = json.loads((RECORDED / "marks.json").read_text())["sports2d"]
    jumper, walker = (numbers(tracks, marks[person], every) for person in ("jumper", "walker"))
    assert len(set(jumper)) == len(set(walker)) == 1
    assert set(jumper) != set(walker)
    assert len(jumper) >= 12 and len(walker) >= 15
    assert len(tracks) == 2


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("clip", CLIPS[1:])
def test_no_track_changes_numbers_in_views_of_a_laboratory(clip: str, every: int) -> None:
    seen, video = load_recording(clip, every)
    tracks = follow(seen, *video)
    for person, marks in json.loads((RECORDED / "marks.json").read_text())[clip].items():
        found = numbers(tracks, marks, every)
        assert len(found) >= 9, person
        assert switches(found) == 0, person
