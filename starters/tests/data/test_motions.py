"""Motion capture as tracks of 2D poses: on recordings written here, with arithmetic that is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from models.people.keypoints import HIPS, KEYPOINT_COUNT, KEYPOINT_NAMES, TOKEN_VALUES
from starters.data.people.mocap_files import BOXING, CLIMBING, CLIMBING_JOINTS, Motion, read_bvh, read_deepmimic, read_positions
from starters.data.people.motions import (
    UNLABELLED,
    LabelledPart,
    MotionRecording,
    Motions,
    MotionTracks,
    PersonMotion,
    Take,
    follow,
    is_standing,
    play,
)
from starters.data.people.simulated_detector import Noise, VirtualCamera, detect, draw_camera
from training.data.packages import PyPIPackage
from training.errors import DataError

AT = {name: number for number, name in enumerate(KEYPOINT_NAMES)}
STILL = [1.0, 0.0, 0.0, 0.0]
NONE = Noise(jitter=0, bias=0, swapped=0, far=0, missed=0, missed_upside_down=0, score=1, score_std=0, margins=(0, 0, 0, 0))


def deepmimic(folder: Path, **angles: float) -> Path:
    """Write two frames of an upright person, arms and legs down except for the right knee and elbow."""
    limbs = [*STILL, angles.get("knee", 0.0), *STILL, *STILL, angles.get("elbow", 0.0), *STILL, 0.0, *STILL, *STILL, 0.0]
    frame = [1 / 30, 0.0, 0.9, 0.0, *STILL, *STILL, *STILL, *limbs]
    file = folder / "clip.txt"
    file.write_text(json.dumps({"Loop": "wrap", "Frames": [frame, frame]}))
    return file


def test_deepmimics_person_stands_as_its_bones_are_long(tmp_path: Path) -> None:
    motion = read_deepmimic(deepmimic(tmp_path))
    joints = motion.joints[0]
    assert (motion.rate, motion.loops) == (pytest.approx(30), True)
    np.testing.assert_allclose(joints[AT["left ankle"]], [0, 0.9 - 0.421546 - 0.40987, -0.084887], atol=1e-6)
    np.testing.assert_allclose(joints[AT["right shoulder"], 1] - joints[AT["right wrist"], 1], 0.274788 + 0.258947, atol=1e-6)
    assert joints[AT["nose"], 0] > joints[AT["left ear"], 0] + 0.05  # looks along x
    assert joints[AT["left shoulder"], 2] < 0 < joints[AT["right shoulder"], 2]


def test_knees_bend_backwards_and_elbows_forwards(tmp_path: Path) -> None:
    joints = read_deepmimic(deepmimic(tmp_path, knee=-np.pi / 2, elbow=np.pi / 2)).joints[0]
    np.testing.assert_allclose(joints[AT["right ankle"]] - joints[AT["right knee"]], [-0.40987, 0, 0], atol=1e-6)
    np.testing.assert_allclose(joints[AT["right wrist"]] - joints[AT["right elbow"]], [0.258947, 0, 0], atol=1e-6)


BONES = {  # joint: (offset, children)
    "Chest": ("0 50 0", ("Head", "LeftShoulder", "RightShoulder")),
    "Head": ("0 10 0", ()),
    "LeftShoulder": ("20 0 0", ("LeftElbow",)),
    "LeftElbow": ("30 0 0", ("LeftWrist",)),
    "LeftWrist": ("25 0 0", ()),
    "RightShoulder": ("-20 0 0", ("RightElbow",)),
    "RightElbow": ("-30 0 0", ("RightWrist",)),
    "RightWrist": ("-25 0 0", ()),
    "LeftHip": ("10 0 0", ("LeftKnee",)),
    "LeftKnee": ("0 -40 0", ("LeftAnkle",)),
    "LeftAnkle": ("0 -40 0", ()),
    "RightHip": ("-10 0 0", ("RightKnee",)),
    "RightKnee": ("0 -40 0", ("RightAnkle",)),
    "RightAnkle": ("0 -40 0", ()),
}


def bone(name: str) -> str:
    offset, children = BONES[name]
    inner = " ".join(map(bone, children)) or "End Site { OFFSET 0 20 0 }"
    return f"JOINT {name} {{ OFFSET {offset} CHANNELS 3 Zrotation Xrotation Yrotation {inner} }}"


def bvh(folder: Path, turns: dict[str, list[float]]) -> Path:
    """Three frames, where the header counts two."""
    hips = "ROOT Hips { OFFSET 0 0 0 CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation "
    row = [0.0, 90.0, 0.0, 0.0, 0.0, 0.0, *(angle for joint in BONES for angle in turns.get(joint, [0.0] * 3))]
    numbers = "\n".join([" ".join(map(str, row))] * 3)
    file = folder / "clip.bvh"
    file.write_text(
        f"HIERARCHY {hips}{bone('Chest')} {bone('LeftHip')} {bone('RightHip')} }}\nMOTION\nFrames: 2\nFrame Time: 0.01\n{numbers}\n"
    )
    return file


def test_bvh_turns_joints_in_the_order_of_their_channels(tmp_path: Path) -> None:
    """The left shoulder turns by a quarter about z, then about its own x; the elbow by a quarter about its own z."""
    motion = read_bvh(bvh(tmp_path, {"LeftShoulder": [90.0, 90.0, 0.0], "LeftElbow": [90.0, 0.0, 0.0]}), BOXING)
    joints = motion.joints[0]
    assert (motion.joints.shape, motion.rate) == ((3, KEYPOINT_COUNT, 3), pytest.approx(100))
    np.testing.assert_allclose(joints[AT["left shoulder"]], [0.2, 1.4, 0], atol=1e-9)
    np.testing.assert_allclose(joints[AT["left elbow"]], [0.2, 1.7, 0], atol=1e-9)
    np.testing.assert_allclose(joints[AT["left wrist"]], [0.2, 1.7, 0.25], atol=1e-9)
    np.testing.assert_allclose(joints[AT["left ankle"]], [0.1, 0.1, 0], atol=1e-9)
    assert joints[AT["nose"], 2] > 0.05  # looks along z


def test_positions_with_z_up_are_stood_on_their_feet(tmp_path: Path) -> None:
    values = np.zeros((4, len(CLIMBING_JOINTS), 3), np.float32)
    for joint, place in {"LeftArm": [0.2, 0.1, 1.4], "RightArm": [-0.2, 0.1, 1.4], "Neck": [0, 0, 1.5], "Head": [0, 0, 1.6]}.items():
        values[:, CLIMBING_JOINTS.index(joint)] = place
    np.save(tmp_path / "clip.npy", values)
    joints = read_positions(tmp_path / "clip.npy", CLIMBING_JOINTS, CLIMBING, 120).joints
    np.testing.assert_allclose(joints[0, AT["left shoulder"]], [0.2, 1.4, -0.1], atol=1e-6)


@pytest.mark.parametrize("content", ["", "{}", '{"Loop": "wrap", "Frames": [[1, 2]]}', "[1]"])
def test_a_file_that_is_no_recording_is_refused_by_its_name(tmp_path: Path, content: str) -> None:
    file = tmp_path / "broken.txt"
    file.write_text(content)
    for read in (read_deepmimic, lambda path: read_bvh(path, BOXING), lambda path: read_positions(path, CLIMBING_JOINTS, CLIMBING, 120)):
        with pytest.raises(DataError, match=r"broken\.txt"):
            read(file)


def upright() -> np.ndarray:
    """Return the pose (17, 3) of a person who stands at the origin and looks along z."""
    joints = np.zeros((KEYPOINT_COUNT, 3))
    heights = {"shoulder": 1.4, "elbow": 1.1, "wrist": 0.85, "hip": 0.9, "knee": 0.5, "ankle": 0.1}
    for side, sign in (("left", 1.0), ("right", -1.0)):
        for part, height in heights.items():
            joints[AT[f"{side} {part}"]] = [sign * 0.15, height, 0]
        joints[AT[f"{side} eye"]], joints[AT[f"{side} ear"]] = [sign * 0.03, 1.6, 0.08], [sign * 0.07, 1.6, 0]
    joints[AT["nose"]] = [0, 1.58, 0.1]
    return joints


def still(frames: int = 60) -> Motion:
    return Motion(np.repeat(upright()[None], frames, axis=0), 30.0)


def glide(frames: int = 30) -> Motion:
    """Return a motion of 1 m/s along z."""
    joints = still(frames).joints
    joints[:, :, 2] += np.arange(frames)[:, None] / 30
    return Motion(joints, 30.0, loops=True)


def test_a_recording_that_loops_walks_on_from_where_it_ended() -> None:
    scene = play(Take("glide", glide(), np.zeros(30, np.int64)), 0.0, 61, 15.0, 1.0)
    steps = np.diff(scene.joints[:, HIPS].mean(axis=1)[:, 2])
    np.testing.assert_allclose(steps, np.full(60, 1 / 15), atol=1e-9)


def test_recording_without_loop_ends_at_the_requested_speed() -> None:
    once = Take("glide", Motion(glide().joints, 30.0), np.arange(30))
    scene = play(once, 0.0, 61, 15.0, 2.0)
    assert scene.labels.tolist() == [0, 4, 8, 12, 16, 20, 24, 28]  # fifteen a second of thirty, at twice the speed


def test_what_follows_begins_where_and_facing_as_the_first_ended() -> None:
    angle = 1.1
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    first = PersonMotion(glide(20).joints @ turn.T + [3.0, 0.0, -2.0], np.zeros(20, np.int64))
    both = follow(first, PersonMotion(glide(20).joints, np.ones(20, np.int64)), 30.0)
    steps = np.diff(both.joints[:, HIPS].mean(axis=1), axis=0)[30:]  # after the one has passed into the other
    np.testing.assert_allclose(steps, np.tile(turn @ [0, 0, 1 / 30], (9, 1)), atol=1e-9)
    assert both.labels.tolist() == [0] * 20 + [1] * 20


def test_standing_is_upright_with_straight_legs_and_quiet_hands() -> None:
    assert is_standing(still())[10:-10].all()
    sitting, waving, bent = still().joints, still().joints, still().joints
    sitting[:, [AT["left knee"], AT["right knee"]], 2] += 0.4
    waving[:, AT["left wrist"], 1] += 0.3 * np.sin(np.arange(60))
    bent[:, :7] = bent[:, :7][..., [0, 2, 1]] + [0, 0.9, -0.5]
    for joints in (sitting, waving, bent, glide(60).joints):
        assert not is_standing(Motion(joints, 30.0)).any()


FRONT = VirtualCamera(np.diag([1.0, -1.0, -1.0]), np.array([0.0, 1.0, 5.0]), 500.0, 640, 360)
"""Camera that looks along -z at the face of a person."""


def test_camera_projects_people_upright_mirrored_and_by_distance() -> None:
    poses, found = detect(upright()[None], FRONT, NONE, np.random.default_rng(0))
    keypoints = poses.keypoints[0]
    assert found.all()
    assert keypoints[AT["nose"], 1] < keypoints[AT["left ankle"], 1]
    np.testing.assert_allclose(keypoints[AT["left hip"], :2], [320 + 0.15 * 100, 180 + 0.1 * 100], atol=1e-6)
    distant, _ = detect(upright()[None] - [0, 0, 5.0], FRONT, NONE, np.random.default_rng(0))
    np.testing.assert_allclose(np.ptp(distant.keypoints[0, 5:, 1]), np.ptp(keypoints[5:, 1]) / 2, rtol=1e-6)


@pytest.mark.parametrize("place", [(9.0, 0.0, 0.0), (0.0, 0.0, 9.0)], ids=["beside", "behind"])
def test_who_is_out_of_the_cameras_sight_is_not_found(place: tuple[float, float, float]) -> None:
    assert not detect(upright()[None] + place, FRONT, NONE, np.random.default_rng(0))[1].any()


def test_the_noise_is_as_large_as_it_says() -> None:
    joints = still(4000).joints
    exact, _ = detect(joints, FRONT, NONE, np.random.default_rng(0))
    noise = Noise(jitter=0.02, bias=0.0, swapped=0.0, far=0.0, missed=0.2, score=0.6, score_std=0.0)
    noisy, found = detect(joints, FRONT, noise, np.random.default_rng(0))
    spread = (noisy.keypoints - exact.keypoints)[:, 5:, :2].std() / np.ptp(exact.keypoints[0, :, 1])
    assert 0.02 < spread < 0.02 * 1.6  # more than at a score of 1
    assert found.mean() == pytest.approx(0.8, abs=0.05)


def test_random_cameras_see_people_head_up_inside_their_frames() -> None:
    random = np.random.default_rng(3)
    for _ in range(50):
        joints = glide().joints
        poses, found = detect(joints, draw_camera(joints, random), NONE, random)
        assert found.mean() > 0.5
        assert (poses.keypoints[found, 0, 1] < poses.keypoints[found][:, 15:, 1].max(axis=1)).all()


def source(company: float = 1.0, people: int = 2) -> MotionTracks:
    recording = MotionRecording(name="glide", package="own", file="clip.txt", format="deepmimic", parts=[LabelledPart(label="walk")])
    settings = Motions.model_validate(
        {
            "classes": ["walk", "stand"],
            "packages": {"pypi": {"own": PyPIPackage(name="none", version="1", sha256="0" * 64)}},
            "recordings": [recording],
            "frames": 20,
            "people": people,
            "company": company,
            "samples": 8,
        }
    )
    return MotionTracks(settings, (Take("glide", glide(), np.zeros(30, np.int64)), Take("still", still(), np.ones(60, np.int64))))


def test_sample_is_set_by_index_and_draw_and_has_class_of_turn() -> None:
    tracks = source()
    one, again, other = tracks.sample(3, 7), tracks.sample(3, 7), tracks.sample(3, 8)
    assert all((one[name] == again[name]).all() for name in one)
    assert not (one["pose"] == other["pose"]).all()
    assert (one["pose"].shape, one["actions"].shape) == ((20, 2, TOKEN_VALUES), (20, 2, 2))
    for index in range(4):
        assert tracks.sample(index, 5)["actions"][:, 0, index % 2].any()


def test_who_is_not_there_has_neither_pose_nor_label() -> None:
    sample = source(company=0.0).sample(0, 0)
    assert not any(sample[name][:, 1].any() for name in sample)
    assert not sample["pose"][sample["detected"][:, 0, 0] == 0, 0].any()


def test_frames_of_no_class_are_not_learnt_from() -> None:
    tracks, labels = source(people=1), np.full(30, UNLABELLED)
    labels[15] = 0
    tracks = MotionTracks(tracks.settings, (Take("glide", glide(), labels), tracks.takes[1]))
    sample = tracks.sample(0, 1)
    unlabelled = sample["labelled"][:, 0, 0] == 0
    assert unlabelled.any()
    assert not sample["actions"][unlabelled, 0].any()


@pytest.mark.parametrize(("change", "word"), [({"parts": [LabelledPart(label="swim")]}, "swim"), ({"package": "elsewhere"}, "elsewhere")])
def test_a_recording_of_an_unknown_class_or_package_is_refused(change: dict[str, object], word: str) -> None:
    settings = source().settings
    with pytest.raises(ValueError, match=word):
        settings.require(settings.recordings[0].model_copy(update=change))
