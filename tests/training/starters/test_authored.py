"""Authored motions: bodies keep their bones, bend as people do and stay on the ground."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.people.poses import HIPS, NAMES
from tests.training.starters.test_motions import source
from training import recipe
from training.evaluation.actions.measure import standing_behind
from training.evaluation.actions.splits import AUTHORED_SEEDS
from training.evaluation.settings import ActionsQuality
from training.starters.people.authored import play, wandering
from training.starters.people.bodies import MOST_BENT, Body, reproportioned
from training.starters.people.motions import (
    NO_ACTION,
    NOBODY_SAYS,
    TRAINED_SEED,
    AuthoredMotions,
    Motions,
    MotionTracks,
    Take,
    _far_from_labels,
    authored_takes,
)
from training.starters.people.skeletons import Motion
from training.starters.people.styles import STYLES

Floats = NDArray[np.floating[Any]]
AT = {name: number for number, name in enumerate(NAMES)}
LIMBS = [(f"{side} {first}", f"{side} {second}", f"{side} {third}") for side in ("left", "right") for first, second, third in (
    ("hip", "knee", "ankle"), ("shoulder", "elbow", "wrist"))]  # fmt: skip
WALKS = "random walk"
KNOWN = [*STYLES, WALKS]


def takes(name: str) -> list[Motion]:
    """Each style by somebody else."""
    if name == WALKS:
        return [wandering(4.0, np.random.default_rng(seed)) for seed in range(6)]
    return [play(style, 4.0, np.random.default_rng(seed)) for seed, style in enumerate(STYLES[name])]


def places(motion: Motion, joint: str) -> Floats:
    return motion.joints[:, AT[joint]]


@pytest.mark.parametrize("name", KNOWN)
def test_bones_keep_their_lengths_and_joints_bend_no_further_than_peoples(name: str) -> None:
    for motion in takes(name):
        for first, second, third in LIMBS:
            upper, lower = places(motion, second) - places(motion, first), places(motion, third) - places(motion, second)
            lengths = np.linalg.norm([upper, lower], axis=2)  # (2, F)
            np.testing.assert_allclose(lengths, lengths[:, :1].repeat(lengths.shape[1], axis=1), rtol=1e-6)
            bent = np.arccos(np.clip((upper * lower).sum(axis=1) / lengths.prod(axis=0), -1, 1))
            assert bent.max() <= MOST_BENT + 1e-6


@pytest.mark.parametrize("name", STYLES)
def test_knees_bend_backwards_about_the_axis_from_hip_to_hip(name: str) -> None:
    for motion in takes(name):
        across = places(motion, "left hip") - places(motion, "right hip")
        for side in ("left", "right"):
            hip, knee, ankle = (places(motion, f"{side} {joint}") for joint in ("hip", "knee", "ankle"))
            axis = np.cross(knee - hip, ankle - knee)
            assert (axis * across).sum(axis=1).min() > -1e-3


@pytest.mark.parametrize("name", STYLES)
def test_nobody_sinks_into_the_ground_or_floats_above_it(name: str) -> None:
    for motion in takes(name):
        lowest = motion.joints[:, :, 1].min(axis=1)
        assert lowest.min() > -0.03
        assert np.quantile(lowest, 0.1) < 0.12  # an ankle is as high; who jumps comes down again


def test_feet_that_bear_somebody_stay_where_they_are() -> None:
    for motion in takes("squat"):
        for foot in ("left ankle", "right ankle"):
            assert np.ptp(places(motion, foot), axis=0).max() < 1e-6
        assert np.ptp(places(motion, "left hip")[:, 1]) > 0.2


def test_hands_that_bear_somebody_stay_where_they_are() -> None:
    for motion in takes("push-up"):
        assert places(motion, "left wrist").std(axis=0).max() < 0.03
        assert np.ptp(places(motion, "left shoulder")[:, 1]) > 0.1


def test_who_walks_gets_on_with_one_foot_on_the_ground() -> None:
    for motion in takes("walk"):
        ankles = motion.joints[:, [AT["left ankle"], AT["right ankle"]]]
        speed = np.linalg.norm(np.gradient(ankles, axis=0)[..., [0, 2]], axis=2) * motion.rate  # (F, 2)
        gone = np.ptp(motion.joints[:, HIPS].mean(axis=1)[:, 2])
        assert gone > 1.0
        assert np.median(speed.min(axis=1)) < 0.35 * gone / 4.0  # the slower foot, beside the body


def test_nothing_that_the_actions_are_evaluated_by_is_trained_on() -> None:
    plan = recipe.read(Path("training/recipes/actions.yaml"))
    assert isinstance(plan.data, Motions) and plan.release and isinstance(plan.release.quality, ActionsQuality)
    quality = plan.release.quality
    files = [[recording.file for recording in some] for some in (plan.data.recordings, quality.validation, quality.held_out)]
    assert len({file for some in files for file in some}) == sum(len(some) for some in files)
    assert len({TRAINED_SEED, *AUTHORED_SEEDS.values()}) == 3
    assert plan.data.authored and set(plan.data.authored.motions) == set(quality.authored.motions) == set(STYLES)


def test_a_class_that_one_recording_or_none_shows_is_unverified() -> None:
    plan = recipe.read(Path("training/recipes/actions.yaml"))
    assert isinstance(plan.data, Motions) and plan.release and isinstance(plan.release.quality, ActionsQuality)
    rows = {row["label"]: row for row in standing_behind(MotionTracks(plan.data, ()), plan.release.quality)}
    assert rows["backflip"] == {"label": "backflip", "recordings": 1, "authored": False, "unverified": True}
    assert rows["wave"] == {"label": "wave", "recordings": 0, "authored": True, "unverified": True}
    assert rows["climb"]["recordings"] == 5 and not rows["climb"]["unverified"]


def test_an_unknown_authored_motion_is_refused() -> None:
    with pytest.raises(ValueError, match=r"swim: not authored; there are wave, .*crawl"):
        AuthoredMotions(motions=["wave", "swim"], takes=1)
    settings = source().settings.model_dump() | {"authored": {"motions": ["wave"], "takes": 1}}
    with pytest.raises(ValueError, match=r"authored\.motions: wave: not among the classes"):
        Motions.model_validate(settings)


def test_bodies_and_tempos_are_what_the_seed_says() -> None:
    wanted = AuthoredMotions(motions=["walk"], takes=2, random_walks=1)
    settings = source().settings
    first, again, other = (authored_takes(settings, wanted, seed) for seed in (1, 1, 2))
    for one, same, different in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one.motion.joints, same.motion.joints)
        assert not np.allclose(one.motion.joints, different.motion.joints)
    assert not first[0].recorded and [int(take.labels[0]) for take in first] == [0, 0, NO_ACTION]


def test_bodies_differ() -> None:
    random = np.random.default_rng(0)
    legs = [Body.drawn(random).leg for _ in range(50)]
    assert 0.02 < np.std(legs) < 0.08


def test_a_recording_is_done_by_somebody_of_other_proportions_in_the_same_directions() -> None:
    [motion, *_] = takes("walk")
    other = reproportioned(motion.joints, np.random.default_rng(0), 0.1)
    factors = []
    for first, second, third in LIMBS:
        for begin, end in ((first, second), (second, third)):
            before, after = (joints[:, AT[end]] - joints[:, AT[begin]] for joints in (motion.joints, other))
            factors.append(np.linalg.norm(after, axis=1) / np.linalg.norm(before, axis=1))
            np.testing.assert_allclose(after, before * factors[-1][:, None], atol=1e-9)
    assert np.ptp(factors, axis=1).max() < 1e-9  # a bone is as long in every frame
    assert len({round(float(factor[0]), 6) for factor in factors}) == 4  # both sides are alike
    np.testing.assert_allclose(reproportioned(motion.joints, np.random.default_rng(0), 0.0), motion.joints, atol=1e-12)


def test_a_recording_is_not_drowned_by_many_authored_takes_of_its_class() -> None:
    settings = source(people=1).settings
    recorded = source(people=1).takes
    still = recorded[1].motion
    many = [Take(f"walk {number}", still, np.zeros(60, np.int64), origin="glide") for number in range(50)]
    tracks = MotionTracks(settings, (*recorded, *many))
    assert [len(origin) for origin in tracks._origins[0]] == [1, 50]


def test_what_shows_no_action_is_learnt_from_with_all_targets_zero() -> None:
    settings = source(people=1).settings.model_copy(update={"none_turns": 1})
    nothing = Take("nothing", source().takes[1].motion, np.full(60, NO_ACTION))
    tracks = MotionTracks(settings, (*source().takes, nothing))
    sample = tracks.sample(2, 0)  # after the two classes
    seen = sample["actions"][:, 0].sum(dim=1) == 0
    assert (sample["labelled"][seen, 0] == 2).all() and seen.any()


def test_only_frames_far_from_labelled_ones_show_no_action() -> None:
    labels = np.full(20, NOBODY_SAYS)
    labels[8:10] = 0
    assert np.flatnonzero(_far_from_labels(labels, 3)).tolist() == [*range(5), *range(13, 20)]
