from __future__ import annotations

import numpy as np
import pytest
import torch

from models.bundle_schema import QuerySpace
from models.systems.mcc.init_attention import init_nearest_attention
from models.systems.mcc.model import MCC
from starters.evaluation.reconstruction.shapes import occupancies
from starters.evaluation.reconstruction.surfaces import Match, Truth, extrude, sample_surface
from tests.models.systems.mcc.test_mcc_nearest import CONFIG


def test_precision_and_recall_of_known_points() -> None:
    truth = Truth(np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]], np.float32), distance=0.1)
    found = truth.match(np.array([[0.09, 0, 0], [0, 0.05, 0], [1.05, 0, 0], [0, 0, 0.11]], np.float32))
    assert found == Match(precision=0.75, recall=0.5)
    assert found.f1 == pytest.approx(0.6)
    assert truth.match(np.zeros((0, 3), np.float32)) == Match(0.0, 0.0)


def test_all_thresholds_at_once_give_what_each_alone_gives() -> None:
    dice = np.random.default_rng(0)
    truth, points = Truth(dice.random((500, 3), np.float32), 0.1), dice.random((400, 3), np.float32) * np.float32(1.3)
    probabilities, thresholds = dice.random(400, np.float32), [0.2, 0.6, 0.9, 0.9999]
    assert truth.matches(points, probabilities, thresholds) == [truth.match(points[probabilities > t]) for t in thresholds]


def test_an_extrusion_is_a_hollow_body_behind_what_is_seen() -> None:
    grid = np.stack([*np.meshgrid(np.arange(5.0), np.arange(5.0)), np.full((5, 5), 1000.0)], axis=-1).astype(np.float32)
    body = extrude(grid, np.ones((5, 5), np.bool_), np.zeros(3, np.float32), depth=2.0, step=0.5)
    depths = np.round(body[:, 2] - 1000, 1)
    assert {value: int((depths == value).sum()) for value in (0.0, 0.5, 1.0, 1.5, 2.0)} == {0.0: 25, 0.5: 16, 1.0: 16, 1.5: 16, 2.0: 25}
    assert len(body) == 98


def test_adaptive_queries_are_fewer_with_the_same_result() -> None:
    torch.manual_seed(0)
    model = MCC(CONFIG).eval()
    init_nearest_attention(model)
    axis = torch.linspace(-1, 1, 32)
    points = torch.stack([axis.expand(32, -1), axis.unsqueeze(1).expand(-1, 32), torch.zeros(32, 32)], dim=-1)
    sample = {"pixels": torch.zeros(3, 48, 48), "points": points, "valid": torch.ones(32, 32, dtype=torch.bool)}
    space = QuerySpace(extent=1.5, reach=0.1)
    grid, dense = occupancies(model, sample, space, 0.1)
    threshold = float(np.quantile(dense, 0.9))
    points, occupancy = occupancies(model, sample, space, 0.1, threshold)
    assert len(grid) == 30**3 > 1.5 * len(points)
    expected = {tuple(point): probability for point, probability in zip(np.round(grid, 3).tolist(), dense.tolist(), strict=True)}
    assert occupancy == pytest.approx([expected[tuple(point)] for point in np.round(points, 3).tolist()], abs=1e-5)
    assert (occupancy > threshold).sum() > 0.9 * (dense > threshold).sum()


def test_surface_points_are_even_however_it_is_divided() -> None:
    corners = np.array([[0, 0, 0], [2, 0, 0], [2, 1, 0], [0, 1, 0], [0.1, 0, 0], [0.1, 1, 0]], np.float32)
    faces = np.array([[0, 4, 5], [0, 5, 3], [4, 1, 2], [4, 2, 5]])
    points = sample_surface(corners, faces, 2000, np.random.default_rng(0))
    assert len(points) == pytest.approx(4000, abs=2) and (points >= 0).all() and (points <= [2, 1, 0]).all()
    assert (points[:, 0] < 0.1).mean() == pytest.approx(0.05, abs=0.02)
    assert sample_surface(corners, faces[:0], 2000, np.random.default_rng(0)).shape == (0, 3)
