"""Tracks of people from 2D poses alone: on made-up paths, and on what MoveNet saw in real clips.

`recorded/poses.npz` holds the skeletons and boxes that the bundle `movenet` found in the clips of PyPI sports2d 0.8.34 and pose2sim
0.10.49, `recorded/marks.json` who is who in every tenth frame, marked by eye; its boxes are the detector's. Pictures are not kept.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from models.people.keypoint_tracks import PoseTrack
from models.people.keypoints import KEYPOINT_COUNT, Poses, box_iou, suppress_duplicates
from models.systems.phalp.keypoint_tracker import PoseTracker, track_poses

RECORDED = Path(__file__).parent / "recorded"
WIDTH, HEIGHT = 640, 360


def poses_at(*places: tuple[float, float], tall: float = 120.0) -> Poses:
    """Upright people with the middles of their boxes at these places."""
    boxes = np.array([[x - tall / 6, y - tall / 2, tall / 3, tall, 0.9] for x, y in places]).reshape(-1, 5)
    middles = np.repeat(boxes[:, None, :2] + boxes[:, None, 2:4] / 2, KEYPOINT_COUNT, axis=1)
    keypoints = np.concatenate([middles, np.ones((len(boxes), KEYPOINT_COUNT, 1))], axis=2)
    return Poses(keypoints, boxes)


def test_two_who_walk_past_each_other_keep_their_numbers() -> None:
    frames = [poses_at((100 + 8 * time, 180), (500 - 8 * time, 200)) for time in range(45)]
    first, second = track_poses(frames, WIDTH, HEIGHT, 15)
    assert (first.person, second.person) == (1, 2)
    assert first.detected.all() and second.detected.all()
    np.testing.assert_allclose(np.diff(first.poses.boxes[:, 0]), 8, atol=1e-3)
    np.testing.assert_allclose(np.diff(second.poses.boxes[:, 0]), -8, atol=1e-3)


def test_person_hidden_for_a_while_keeps_identity() -> None:
    frames = [poses_at((100 + 4 * time, 180)) if not 20 <= time < 32 else poses_at() for time in range(60)]
    (track,) = track_poses(frames, WIDTH, HEIGHT, 15)
    assert (track.first_frame, len(track)) == (0, 60)
    assert (~track.detected).nonzero()[0].tolist() == list(range(20, 32))
    assert not track.rows[20:32].any()


@pytest.mark.parametrize("rate", [10.0, 30.0])
def test_a_track_waits_for_seconds_not_for_frames(rate: float) -> None:
    def people(gap: int) -> int:
        seen = [poses_at((300, 180))] * 12
        return len(track_poses([*seen, *[poses_at()] * gap, *seen], WIDTH, HEIGHT, rate))

    assert people(round(3 * rate)) == 1
    assert people(round(4 * rate)) == 2


def test_no_track_goes_on_across_a_cut() -> None:
    frames = [poses_at((200 + time, 180)) for time in range(30)]
    assert len(track_poses(frames, WIDTH, HEIGHT, 15)) == 1
    before, after = track_poses(frames, WIDTH, HEIGHT, 15, cuts=[18])
    assert (before.first_frame, len(before)) == (0, 18)
    assert (after.first_frame, len(after)) == (18, 12)


def test_a_person_seen_for_an_instant_is_no_track() -> None:
    frames = [poses_at((100, 180), (500, 180)) if time in (7, 8) else poses_at((100, 180)) for time in range(20)]
    assert [len(track) for track in track_poses(frames, WIDTH, HEIGHT, 15)] == [20]


def test_an_empty_video_has_no_people() -> None:
    assert track_poses([poses_at()] * 5, WIDTH, HEIGHT, 15) == []
    assert track_poses([], WIDTH, HEIGHT, 15) == []


def test_a_copy_of_a_tracker_goes_on_by_itself() -> None:
    tracker = PoseTracker(WIDTH, HEIGHT, 15)
    for time in range(10):
        tracker.update(poses_at((100 + time, 180)))
    other = copy.deepcopy(tracker)
    other.update(poses_at((110, 180)))
    assert len(tracker.tracks()[0]) == 10
    assert len(other.tracks()[0]) == 11


CLIPS = ("sports2d", *(f"{kind}{camera}" for kind in ("single", "multi") for camera in (1, 2, 3, 4)))


def load_recording(clip: str, every: int) -> tuple[list[Poses], tuple[int, int, float]]:
    """Return every n-th frame of a clip with its width, height and frames a second."""
    with np.load(RECORDED / "poses.npz") as arrays:
        rows, frames = arrays[f"{clip}.rows"].astype(np.float32), arrays[f"{clip}.frames"]
        width, height, rate, count = arrays[f"{clip}.size"].tolist()
    seen = [suppress_duplicates(Poses.from_rows(rows[frames == frame]), min_score=0.25) for frame in range(0, count, every)]
    return seen, (width, height, rate / every)


def numbers(tracks: list[PoseTrack], marks: Mapping[str, list[int]], every: int) -> list[int]:
    """Return the track on a person's mark in each marked frame, in order; frames without one are left out."""
    found = []
    for frame, box in sorted((int(frame), box) for frame, box in marks.items()):
        if frame % every:
            continue
        rows = [(track, frame // every - track.first_frame) for track in tracks]
        boxes = {track.person: track.poses.boxes[[row], :4] for track, row in rows if 0 <= row < len(track) and track.detected[row]}
        over = {person: float(box_iou(box_seen, np.array([box], np.float64))[0, 0]) for person, box_seen in boxes.items()}
        found += [person for person, overlap in over.items() if overlap > 0.5 and overlap == max(over.values())]
    return found


def switches(found: list[int]) -> int:
    return sum(before != after for before, after in itertools.pairwise(found))


@pytest.mark.parametrize("every", [1, 2])
def test_two_people_outdoors_are_one_track_each_over_the_clip(every: int) -> None:
    """The first person jumps off a wall, is not detected for two seconds of flight, lands and rolls, while the other walks past."""
    seen, video = load_recording("sports2d", every)
    tracks = track_poses(seen, *video)
    marks = json.loads((RECORDED / "marks.json").read_text())["sports2d"]
    jumper, walker = (numbers(tracks, marks[person], every) for person in ("jumper", "walker"))
    assert (set(jumper), set(walker)) == ({1}, {2})
    assert len(jumper) >= 12 and len(walker) >= 15
    assert len(tracks) == 2


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("clip", CLIPS[1:])
def test_no_track_changes_numbers_in_views_of_a_laboratory(clip: str, every: int) -> None:
    seen, video = load_recording(clip, every)
    tracks = track_poses(seen, *video)
    for person, marks in json.loads((RECORDED / "marks.json").read_text())[clip].items():
        found = numbers(tracks, marks, every)
        assert len(found) >= 9, person
        assert switches(found) == 0, person
