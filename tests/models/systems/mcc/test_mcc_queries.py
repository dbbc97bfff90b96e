"""MCC's grids, labels, clouds and metrics, beyond the recorded cases and at their published sizes; distances against SciPy's k-d tree."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from models.systems.mcc.model import MCC, SceneCache, decode_colours
from models.systems.mcc.queries import (
    cube_grid,
    half_ball_grid,
    label_queries,
    nearest_points,
    reconstruct,
    score_coverage,
)
from tests.golden.case import read_case
from tests.golden.replays.mcc import scene_of

GOLDEN = Path(__file__).parents[3] / "golden" / "mcc"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("spacing", "count"), [(0.1, 216_000), (0.2, 27_000), (0.7, 729)])
def test_the_cube_leaves_its_far_end_out(spacing: float, count: int) -> None:
    grid = cube_grid(3.0, spacing)
    assert grid.shape == (count, 3)
    assert grid.dtype is torch.float32
    assert grid[0].tolist() == [-3, -3, -3]
    side = round(count ** (1 / 3))
    torch.testing.assert_close(grid[-1], torch.full((3,), 3 - 6 / side))
    assert grid[1, 2] > grid[0, 2]  # z is the fastest
    assert torch.equal(grid[1, :2], grid[0, :2])


def test_finer_cubes_hold_the_coarser_ones_bit_for_bit() -> None:
    fine = cube_grid(3.0, 0.05).view(120, 120, 120, 3)
    assert torch.equal(fine[::2, ::2, ::2].reshape(-1, 3), cube_grid(3.0, 0.1))
    assert torch.equal(fine[::4, ::4, ::4].reshape(-1, 3), cube_grid(3.0, 0.2))


@pytest.mark.parametrize(("spacing", "count"), [(0.2, 57_951), (0.1, 457_689)])
def test_the_half_ball_has_the_published_number_of_points(spacing: float, count: int) -> None:
    grid = half_ball_grid(6.0, spacing)
    assert grid.shape == (count, 3)
    assert grid[:, 2].min() == 0
    assert grid.double().norm(dim=1).max() < 6 + 1e-5


def test_a_half_ball_of_any_spacing_holds_what_lies_inside() -> None:
    grid = half_ball_grid(1.0, 0.3)
    index = torch.cartesian_prod(torch.arange(-3, 4), torch.arange(-3, 4), torch.arange(4))
    assert len(grid) == int((0.09 * index.square().sum(dim=1) <= 1).sum())


def test_labels_are_those_of_the_nearest_point() -> None:
    queries = torch.rand(2, 300, 3, generator=generator())
    truth, colours = torch.rand(2, 80, 3, generator=generator(1)), torch.rand(2, 80, 3, generator=generator(2))
    labels = label_queries(queries, truth, colours, 0.1)
    for scene in range(2):
        distance, index = cKDTree(truth[scene].numpy()).query(queries[scene].numpy())
        near = torch.from_numpy(distance) < 0.1
        assert torch.equal(labels.occupied[scene], near.float())
        assert torch.equal(labels.colours[scene], colours[scene][torch.from_numpy(index)] * near.unsqueeze(1))
        assert 0 < near.sum() < 300


def test_a_point_at_the_threshold_is_not_near() -> None:
    queries = torch.tensor([[[0.5, 0.0, 0.0], [0.49, 0.0, 0.0]]])
    assert label_queries(queries, torch.zeros(1, 1, 3), torch.ones(1, 1, 3), 0.5).occupied.tolist() == [[0, 1]]


def test_distances_do_not_cancel_far_from_the_origin() -> None:
    truth = torch.tensor([[[1000.0, 1000.0, 1000.0]]]).repeat(1, 50, 1)  # more than 25 points: where libraries turn to dot products
    distance, _ = nearest_points(truth + torch.tensor([0.5, 0.0, 0.0]), truth)
    assert torch.equal(distance, torch.full((1, 50), 0.5))


@pytest.fixture(scope="module")
def scene() -> tuple[MCC, SceneCache, Tensor]:
    with torch.no_grad():
        model, images, seen, queries = scene_of(read_case(GOLDEN / "co3d_demo"))
        return model, model.cache_scene(model.encode(images, seen)), queries[0]


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 100, 10_000])
def test_a_cloud_is_what_is_occupied_whatever_the_chunks(scene: tuple[MCC, SceneCache, Tensor], chunk: int) -> None:
    model, encoded, queries = scene
    predicted = model.predict_outputs(model.decode_queries(encoded, queries.unsqueeze(0)))[0]
    occupied = predicted[:, 0].sigmoid() > 0.3
    cloud = reconstruct(model, encoded, queries, threshold=0.3, chunk=chunk)
    assert torch.equal(cloud.points, queries[occupied])
    torch.testing.assert_close(cloud.occupancy, predicted[occupied, 0].sigmoid(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cloud.colours, decode_colours(predicted[occupied]), atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_a_cloud_may_be_empty(scene: tuple[MCC, SceneCache, Tensor]) -> None:
    model, encoded, queries = scene
    cloud = reconstruct(model, encoded, queries, threshold=1.0)
    assert cloud.points.shape == cloud.colours.shape == (0, 3)
    assert cloud.occupancy.shape == (0,)


def test_a_cloud_needs_no_gradients(scene: tuple[MCC, SceneCache, Tensor]) -> None:
    model, encoded, queries = scene
    cloud = reconstruct(model, encoded, queries, threshold=0.3)
    assert not cloud.occupancy.requires_grad
    assert not cloud.colours.requires_grad


def test_scores_are_shares_of_points_that_are_near() -> None:
    predicted = torch.tensor([[0.0, 0, 0], [1, 0, 0], [5, 0, 0]])
    truth = torch.tensor([[0.05, 0, 0], [1, 0.05, 0], [2, 0, 0], [3, 0, 0]])
    result = score_coverage(predicted, truth, 0.1)
    assert result.precision == pytest.approx(2 / 3)
    assert result.recall == result.recall_as_published == 0.5
    assert result.f1 == pytest.approx(4 / 7)


def test_the_published_recall_looks_at_too_few_true_points() -> None:
    truth = torch.zeros(20, 3)
    result = score_coverage(torch.zeros(6, 3), truth, 0.1, published_slice=5)  # two slices of five for six predictions
    assert (result.recall, result.recall_as_published) == (1.0, 0.5)
    assert (result.f1, result.f1_as_published) == (1.0, pytest.approx(2 / 3))
    assert score_coverage(torch.zeros(16, 3), truth, 0.1, published_slice=5).recall_as_published == 1.0


@pytest.mark.parametrize("predicted", [torch.zeros(0, 3), torch.full((2, 3), 9.0)])
def test_nothing_met_scores_nothing(predicted: Tensor) -> None:
    result = score_coverage(predicted, torch.zeros(4, 3))
    assert (result.precision, result.recall, result.f1, result.f1_as_published) == (0, 0, 0, 0)
