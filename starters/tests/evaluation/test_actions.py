"""How actions are measured: on moments whose answers are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models import bundle
from models.people.heads import TrackFeatureDims
from models.people.keypoints import TOKEN_VALUES
from models.people.track_batch import TrackBatch
from models.systems.lart.model import LART, LARTConfig
from starters.data.people.motions import UNLABELLED, Motions
from starters.evaluation.actions import samples
from starters.evaluation.actions.quality import ActionsQuality, lart, logistic_statistics, table
from starters.evaluation.actions.samples import Moments, Views
from starters.make.actions_bundle import reliance, thresholds
from starters.tests.data.test_motions import source
from training import recipe
from training.errors import TrainingError
from training.evaluation.report import read_or_evaluate_once, reports
from training.phase_runner import RunContext

ROOT = Path(__file__).parents[3]
RECIPE = Path("starters/recipes/actions.yaml")
FRAMES = 20
TINY = LARTConfig(
    frames=FRAMES,
    pose=TrackFeatureDims(TOKEN_VALUES, 16, 16),
    joints=None,
    appearance=None,
    depth=1,
    heads=1,
    head_dim=8,
    hidden=16,
    actions=2,
    kinetics_classes=1,
    times=FRAMES,
    people=2,
    regressor_hidden=8,
)


def label_poses(labels: list[int], recordings: list[str]) -> Moments:
    """Return moments whose poses have the label as all of their values."""
    pose = np.repeat(np.array(labels, np.float32)[:, None, None], FRAMES, axis=1).repeat(TOKEN_VALUES, axis=2)
    pose += np.random.default_rng(0).normal(0, 0.01, pose.shape).astype(np.float32)
    seen = np.ones(pose.shape[:2], np.bool_)
    return Moments(pose, seen, np.full(len(labels), 10), np.array(labels), tuple(recordings))


def test_moments_are_evaluated_each_second_and_cameras_per_class() -> None:
    tracks = source(people=1)
    labels = np.ones(60, np.int64)
    labels[30:] = UNLABELLED
    take = replace(tracks.takes[1], labels=labels)
    found = samples.moments_of_takes([take], tracks, Views(0.5, 3, 0))
    assert set(found.labels.tolist()) == {1}
    assert 3 <= len(found) <= 6  # at 0.25 and 0.75 s; a camera may miss the person
    assert found.pose.shape[1:] == (20, TOKEN_VALUES)
    assert found.detected[np.arange(len(found)), found.rows].all()
    again = samples.moments_of_takes([take], tracks, Views(0.5, 3, 0))
    np.testing.assert_array_equal(found.pose, again.pose)


def test_moments_of_training_have_the_labels_of_their_frames() -> None:
    drawn = samples.draw_training_moments(source(people=1), 24, seed=5)
    assert len(drawn) > 12
    assert set(drawn.labels.tolist()) == {0, 1}
    assert drawn.detected[np.arange(len(drawn)), drawn.rows].all()


def test_logistic_regression_recognises_poses() -> None:
    training, unknown = label_poses([0, 1] * 20, ["a"] * 40), label_poses([1, 1, 0], ["b"] * 3)
    scores = logistic_statistics(training, unknown, 3)
    assert scores.shape == (3, 3)
    assert scores.argmax(axis=1).tolist() == [1, 1, 0]


def test_lart_scores_are_mean_of_sigmoids_around_the_moment() -> None:
    torch.manual_seed(0)
    model, these = LART(TINY).eval(), label_poses([0, 1], ["a", "b"])
    scores = lart(model, these, rate=15.0)
    tracks = TrackBatch(torch.from_numpy(these.pose)[:, :, None], torch.ones(2, FRAMES, 1, 1))
    with torch.inference_mode():
        sigmoids = model(tracks).reading.actions[:, :, 0].sigmoid()
    np.testing.assert_allclose(scores, sigmoids[:, 7:13].mean(dim=1), atol=1e-6)


def test_table_counts_by_class() -> None:
    these = label_poses([0, 0, 0, 1], ["a", "a", "b", "c"])
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6]])
    counted = table(these, {"way": scores}, ("walk", "stand"))
    walk, stand = counted["classes"]
    assert (walk["label"], walk["moments"], walk["recordings"]) == ("walk", 3, ["a", "b"])
    assert walk["accuracy"] == {"way": pytest.approx(2 / 3, abs=1e-4)}
    assert stand["average_precision"] == {"way": 0.5}  # one of the walkers scores higher
    assert counted["accuracy"] == {"way": 0.75}


def read_shipped() -> tuple[Motions, ActionsQuality]:
    """Read data and evaluation of the shipped recipe."""
    plan = recipe.read(RECIPE)
    assert isinstance(plan.data, Motions) and plan.release and isinstance(plan.release.quality, ActionsQuality)
    return plan.data, plan.release.quality


def test_test_recordings_are_not_trained_on() -> None:
    data, quality = read_shipped()
    files = [recording.file for recording in (*data.recordings, *quality.held_out)]
    assert len(set(files)) == len(files)


def test_shipped_recipe_is_the_bundles() -> None:
    """Optimiser, schedule and data of every phase are those that `bundle.json` records."""
    recorded = bundle.read(ROOT / "bundles/actions-lart/1.0.0").spec.provenance["recipe"]
    plan = recipe.read(RECIPE).model_dump(mode="json")
    phases_before = {phase["name"]: phase for phase in recorded["phases"]}
    for phase in plan["phases"]:
        before = phases_before[phase["name"]]
        for field in ("objective", "optimiser", "schedule", "loop", "data"):
            assert (phase[field] or {}) | (before[field] or {}) == (phase[field] or {})
    assert plan["model"] == recorded["model"]


def test_a_test_split_is_looked_at_once(tmp_path: Path) -> None:
    looks = iter(({"right": 0.6}, {"right": 0.9}))
    file, weights = tmp_path / "evaluation" / "test.json", {"weights": "a"}
    first = read_or_evaluate_once(file, weights, lambda: next(looks))
    assert read_or_evaluate_once(file, weights, lambda: next(looks)) == first == {"judged": weights, "right": 0.6}
    with pytest.raises(TrainingError, match="looked at with other weights"):
        read_or_evaluate_once(file, {"weights": "b"}, lambda: next(looks))


def test_a_look_of_an_earlier_version_counts(tmp_path: Path) -> None:
    context = RunContext(tmp_path / "tiny-1.0.0", tmp_path, torch.device("cpu"))
    (context.runs / "judging").mkdir(parents=True)
    (context.runs / "judging" / "test.json").write_text('{"judged": {"weights": "a"}, "right": 0.6}')
    assert read_or_evaluate_once(reports(context) / "test.json", {"weights": "a"}, lambda: {"right": 0.9})["right"] == 0.6
    assert not (context.runs / "judging").exists()


def moments_of(labels: list[int]) -> Moments:
    count = len(labels)
    return Moments(np.zeros((count, 1, 55)), np.ones((count, 1), bool), np.zeros(count, int), np.array(labels), ("take",) * count)


def test_threshold_is_least_score_with_wanted_precision() -> None:
    """`walk` is right at 0.9, 0.8, 0.7, 0.6, wrong at 0.5 and 0.4; `stand` is wrong where it scores most, and so is `jump`."""
    walk = np.array([[score, 0.1, 0.3] for score in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)])
    stand = np.array([[0, 0.9, 0.2]])
    moments, scores = moments_of([0, 0, 0, 0, 1, 1, 2]), np.concatenate([walk, stand])
    minimum_scores = thresholds(moments.labels, scores, precision=0.8)
    assert minimum_scores == [0.5, 1.0, 1.0]  # four of five are right
    found = reliance(moments.labels, scores, minimum_scores)
    assert (found["right"], found["sure"], found["right_of_sure"]) == (0.5714, 0.7143, 0.8)
