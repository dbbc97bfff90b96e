"""People as 2D poses, and LART's token of them."""

from __future__ import annotations

import numpy as np

from models.people.keypoints import (
    BONES,
    HIPS,
    KEYPOINT_COUNT,
    KEYPOINT_NAMES,
    MIRRORED,
    TOKEN_VALUES,
    Poses,
    box_iou,
    encode_tokens,
    estimate_depths,
    suppress_duplicates,
)

WIDTH, HEIGHT = 640, 360


def crowd(people: int = 3, seed: int = 0) -> Poses:
    random = np.random.default_rng(seed)
    boxes = np.column_stack([random.uniform(0, 300, (people, 2)), random.uniform(40, 200, (people, 2)), random.random(people)])
    places = boxes[:, None, :2] + random.random((people, KEYPOINT_COUNT, 2)) * boxes[:, None, 2:4]
    return Poses(np.concatenate([places, random.random((people, KEYPOINT_COUNT, 1))], axis=2), boxes)


def move(poses: Poses, scale: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)) -> Poses:
    keypoints, boxes = poses.keypoints.copy(), poses.boxes.copy()
    keypoints[..., :2] = keypoints[..., :2] * scale + shift
    boxes[:, :4] *= scale
    boxes[:, :2] += shift
    return Poses(keypoints, boxes)


def test_token_is_pose_around_hips_and_position_of_box() -> None:
    keypoints = np.zeros((1, KEYPOINT_COUNT, 3))
    keypoints[0, HIPS, :2] = [[90, 100], [110, 100]]
    keypoints[0, KEYPOINT_NAMES.index("nose")] = [100, 50, 0.9]
    token = encode_tokens(Poses(keypoints, np.array([[80.0, 40.0, 40.0, 100.0, 0.7]])), 200, 100)[0]
    assert token.shape == (TOKEN_VALUES,)
    np.testing.assert_allclose(token[:3], [0, -0.5, 0.9], atol=1e-6)  # half of the box's height above the hips
    np.testing.assert_allclose(token[51:], [0.0, (90 - 50) / 200, 100 / 200, 0.7], atol=1e-6)


def test_tokens_do_not_depend_on_the_resolution_of_the_video() -> None:
    poses = crowd()
    np.testing.assert_allclose(encode_tokens(move(poses, 3), 3 * WIDTH, 3 * HEIGHT), encode_tokens(poses, WIDTH, HEIGHT), atol=1e-5)


def test_pose_in_token_is_invariant_to_place_and_distance() -> None:
    poses = crowd()
    other = encode_tokens(move(poses, 0.5, (200, -20)), WIDTH, HEIGHT)
    np.testing.assert_allclose(other[:, :51], encode_tokens(poses, WIDTH, HEIGHT)[:, :51], atol=1e-5)
    assert np.abs(other[:, 51:54] - encode_tokens(poses, WIDTH, HEIGHT)[:, 51:54]).min() > 1e-3


def test_pose_and_box_are_found_again_in_a_token() -> None:
    poses = crowd()
    found = encode_tokens(poses, WIDTH, HEIGHT).astype(np.float64)
    tall = found[:, 53] * WIDTH
    np.testing.assert_allclose(tall, poses.boxes[:, 3], rtol=1e-5)
    middles = found[:, 51:53] * WIDTH + [WIDTH / 2, HEIGHT / 2]
    np.testing.assert_allclose(middles, poses.boxes[:, :2] + poses.boxes[:, 2:4] / 2, rtol=1e-4)
    limbs = found[:, :51].reshape(-1, KEYPOINT_COUNT, 3)[..., :2] * tall[:, None, None]
    hips = poses.keypoints[:, HIPS, :2].mean(axis=1, keepdims=True)
    np.testing.assert_allclose(limbs + hips, poses.keypoints[..., :2], rtol=1e-4)


def test_no_people_make_no_tokens_and_flat_boxes_finite_ones() -> None:
    assert encode_tokens(crowd(0), WIDTH, HEIGHT).shape == (0, TOKEN_VALUES)
    flat = crowd(1)
    flat.boxes[0, 3] = 0
    assert np.isfinite(encode_tokens(flat, WIDTH, HEIGHT)).all()


def test_a_mirror_exchanges_left_and_right() -> None:
    assert KEYPOINT_NAMES[MIRRORED[KEYPOINT_NAMES.index("left wrist")]] == "right wrist"
    assert [KEYPOINT_NAMES[other].replace("left", "right") for other in MIRRORED] == [
        name.replace("left", "right") for name in KEYPOINT_NAMES
    ]


def test_who_is_twice_as_far_away_looks_half_as_tall() -> None:
    boxes = np.array([[0, 0, 50, 170.0, 1], [0, 0, 50, 85.0, 1]])
    np.testing.assert_allclose(estimate_depths(boxes, focal=1000), [10, 20])


def test_duplicate_and_unlikely_people_go_and_best_come_first() -> None:
    boxes = np.array([[0, 0, 10, 10, 0.5], [0, 1, 10, 10, 0.9], [50, 0, 10, 10, 0.3], [80, 0, 10, 10, 0.1], [5, 0, 10, 10, 0.4]])
    people = suppress_duplicates(Poses(np.zeros((5, KEYPOINT_COUNT, 3)), boxes), min_score=0.2)
    assert people.boxes[:, 4].tolist() == [0.9, 0.4, 0.3]
    assert len(suppress_duplicates(crowd(0), min_score=0.2)) == 0


def test_overlaps_are_intersections_over_unions() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 0, 10, 10], [20, 20, 1, 1], [0, 0, 0, 0]], np.float64)
    np.testing.assert_allclose(box_iou(boxes[:1], boxes), [[1, 1 / 3, 0, 0]])


def test_bones_join_the_parts_of_one_body() -> None:
    reached = {0}
    for _ in BONES:
        reached |= {b for a, b in BONES if a in reached} | {a for a, b in BONES if b in reached}
    assert len(reached) == 5  # the head; no bone leads from it to the trunk
    assert {5, 16} <= {joint for bone in BONES for joint in bone}
