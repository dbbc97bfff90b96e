from __future__ import annotations

import numpy as np
import pytest
import torch

from models.bundle_schema import Preprocess
from models.merge_schedule import MergeSchedule
from models.systems.vit.model import Pool, ViT, ViTConfig
from starters.evaluation import baselines
from training.evaluation import metrics
from training.evaluation.report import calibrate

PREPROCESS = Preprocess(image_size=16, short_side=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def test_accuracy_has_the_binomial_standard_error() -> None:
    measured = metrics.accuracy(np.array([True] * 30 + [False] * 70))
    assert measured.value == pytest.approx(0.3)
    assert measured.standard_error == pytest.approx((0.3 * 0.7 / 99) ** 0.5)
    assert measured.n == 100


def test_error_of_difference_counts_only_disagreements() -> None:
    right = np.array([True] * 60 + [True] * 12 + [False] * 4 + [False] * 24)
    other = np.array([True] * 60 + [False] * 12 + [True] * 4 + [False] * 24)
    measured = metrics.difference(right, other)
    assert measured.value == pytest.approx((12 - 4) / 100)
    assert measured.standard_error == pytest.approx(((12 + 4) / 100 - 0.08**2) ** 0.5 / 99**0.5)  # McNemar's
    assert metrics.difference(right, right).standard_error == 0


def test_predictions_do_not_depend_on_the_batch_size() -> None:
    torch.manual_seed(0)
    model = ViT(ViTConfig(image_size=16, patch_size=4, classes=3, width=16, depth=2, heads=2, pool=Pool.MEAN)).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    schedule = MergeSchedule.constant(3)
    full = metrics.logits(model, pixels, PREPROCESS, schedule)
    assert full.shape == (7, 3)
    np.testing.assert_allclose(metrics.logits(model, pixels, PREPROCESS, schedule, batch_size=2), full, atol=1e-5)


def test_throughput_is_relative_and_leaves_the_threads_alone() -> None:
    model = ViT(ViTConfig(image_size=16, patch_size=2, classes=3, width=32, depth=2, heads=2, pool=Pool.MEAN)).eval()
    torch.set_num_threads(2)
    schedules = {"none": MergeSchedule.off(), "some": MergeSchedule.constant(16)}
    ratios = metrics.relative_throughput(model, schedules, batch_size=2, rounds=3)
    assert torch.get_num_threads() == 2
    assert set(ratios) == {"none", "some"} and all(ratio > 0 for ratio in ratios.values())


def test_fitted_temperature_is_scale_of_the_logits() -> None:
    numbers = np.random.default_rng(0)
    honest = numbers.normal(0, 2, (20_000, 4)).astype(np.float32)
    labels = (honest + numbers.gumbel(size=honest.shape)).argmax(axis=1)  # drawn with the probabilities that the logits say
    assert metrics.fit_temperature(3 * honest, labels) == pytest.approx(3, rel=0.05)
    assert metrics.calibration_error(honest, labels) < 0.01
    assert metrics.calibration_error(3 * honest, labels) > 0.05


def test_calibration_error_is_mean_gap_of_confidence() -> None:
    logits = np.log(np.array([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 10, dtype=np.float32))
    labels = np.array([0] * 7 + [1] * 3 + [0] * 8 + [1] * 2)
    assert metrics.calibration_error(logits, labels) == pytest.approx((0.2 + 0.2) / 2, abs=1e-6)


def test_the_label_may_be_any_of_the_k_best() -> None:
    logits = np.array([[3, 2, 1, 0], [3, 2, 1, 0], [0, 1, 2, 3]], dtype=np.float32)
    assert metrics.top_k(logits, np.array([0, 2, 0]), 2).tolist() == [True, False, False]
    assert metrics.top_k(logits, np.array([1, 2, 2]), 2).tolist() == [True, False, True]


def test_calibrated_model_predicts_same_with_other_confidence() -> None:
    torch.manual_seed(0)
    model = ViT(ViTConfig(image_size=16, patch_size=4, classes=3, width=16, depth=2, heads=2, pool=Pool.MEAN)).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    before = metrics.logits(model, pixels, PREPROCESS, MergeSchedule.off())
    after = metrics.logits(calibrate(model, 2.5), pixels, PREPROCESS, MergeSchedule.off())
    np.testing.assert_allclose(after, before / 2.5, rtol=1e-4, atol=1e-6)


def test_nearest_neighbour_predicts_the_label_of_the_nearest() -> None:
    numbers = np.random.default_rng(0)
    labels = np.arange(60) % 2
    pictures = numbers.integers(0, 60, (60, 32, 32, 3)).astype(np.uint8)
    pictures[labels == 1, :16] += 120  # the upper half shows the class
    assert (baselines.nearest_neighbour(pictures[:2], np.array([5, 7]), pictures[2:]) == np.where(labels[2:] == 0, 5, 7)).all()
