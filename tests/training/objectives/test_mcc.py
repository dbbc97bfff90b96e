"""MCC: the loss query by query; where queries are; augmentation shared by a step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy import stats

from models.bundle_schema import Preprocess
from models.systems.mcc.model import MCC
from models.systems.mcc.point_embed import contract
from models.systems.mcc.queries import label_queries
from tests.training.objectives.cases import MCC_CONFIG, assert_same_gradients, draw, gradients, make, uniform
from training import random_draws
from training.objectives.mcc import MCCObjective, MCCSettings, find_labels, sample_cube, sample_half_ball
from training.objectives.protocols import ObjectiveContext


def objective_of(settings: dict[str, object], facts: ObjectiveContext | None = None, **config: object) -> MCCObjective:
    torch.manual_seed(0)
    return MCCObjective(MCC(replace(MCC_CONFIG, **config)), MCCSettings.model_validate(settings), facts)  # type: ignore[arg-type]


@pytest.mark.parametrize("regress", [False, True])
def test_queries_near_surface_are_occupied_in_its_colour(regress: bool) -> None:
    _, batch = make("mcc")
    objective = objective_of({"queries": 30, "threshold": 0.6}, regress_colour=regress, colour_weight=0.5, drop_path=0.0)
    queries = 3 * (2 * random_draws.uniform(draw(), (30, 3), "queries") - 1)
    augmentation = objective.augmentation(draw())
    seen = torch.where(batch["valid"].unsqueeze(-1), batch["points"], torch.inf)
    images = augmentation.transform_images(batch["pixels"])
    predicted = objective.model(images, augmentation.transform_seen(seen), augmentation.transform_points(queries))
    occupancy, colour = [], []
    for sample in range(4):
        for place, query in enumerate(queries[sample]):
            distance = (batch["surface"][sample] - query).norm(dim=1)
            near, nearest = bool(distance.min() < 0.6), int(distance.argmin())
            probability = predicted[sample, place, 0].sigmoid()
            occupancy.append(-(probability if near else 1 - probability).log())
            for channel in range(3 if near else 0):
                true = batch["colours"][sample, nearest, channel]
                if regress:
                    colour.append((predicted[sample, place, 1 + channel] - true).square())
                else:
                    classes = predicted[sample, place, 1 + 256 * channel : 257 + 256 * channel]
                    colour.append(-classes.log_softmax(dim=0)[int((255 * true).round())])
    assert 3 < len(colour) < len(occupancy)
    expected = torch.stack(occupancy).mean() + 0.5 * torch.stack(colour).mean()
    values = objective(batch)
    assert values["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert values["loss_colour"].item() == pytest.approx(torch.stack(colour).mean().item(), rel=1e-5)
    assert_same_gradients(gradients(values["loss"], objective), gradients(expected, objective), 3e-5)


def test_where_nothing_is_near_colours_teach_nothing() -> None:
    _, batch = make("mcc")
    values = objective_of({"queries": 30, "threshold": 1e-6}, drop_path=0.0)(batch)
    assert values["loss_colour"] == 0 and values["loss"] == values["loss_occupancy"]


def test_queries_fill_the_cube_evenly() -> None:
    queries = sample_cube(torch.arange(50), 100, 3.0)
    for axis in range(3):
        assert stats.kstest(queries[..., axis].flatten().numpy(), stats.uniform(-3, 6).cdf).pvalue > 1e-3


def test_queries_fill_the_half_ball_evenly() -> None:
    queries = sample_half_ball(torch.arange(50), 100, 6.0).flatten(0, 1).double()
    radius = queries.norm(dim=1)
    assert (queries[:, 2] >= 0).all() and radius.max() < 6
    assert stats.kstest(((radius / 6) ** 3).numpy(), "uniform").pvalue > 1e-3  # volume within a radius
    assert stats.kstest((queries[:, 2] / radius).numpy(), "uniform").pvalue > 1e-3  # Archimedes
    assert stats.kstest(torch.atan2(queries[:, 1], queries[:, 0]).numpy(), stats.uniform(-torch.pi, 2 * torch.pi).cdf).pvalue > 1e-3


def test_a_recipe_sets_the_queried_region() -> None:
    surface = torch.zeros(4, 1, 3)
    ball = objective_of({"queries": 50, "region": "half-ball", "size": 6.0}).queries(draw(), surface)
    torch.testing.assert_close(ball, sample_half_ball(draw(), 50, 6.0))
    torch.testing.assert_close(objective_of({"queries": 50, "size": 2.0}).queries(draw(), surface), sample_cube(draw(), 50, 2.0))


def test_a_share_of_the_queries_may_lie_near_the_surface() -> None:
    surface = 5 * torch.randn(4, 60, 3, generator=torch.Generator().manual_seed(0))
    queries = objective_of({"queries": 100, "near": 0.3, "threshold": 0.05}).queries(draw(), surface)
    distance = torch.cdist(queries, surface).min(dim=2).values
    assert queries.shape == (4, 100, 3)
    assert distance[:, :30].max() < 0.05 * 6 and distance[:, 30:].median() > 0.5
    torch.testing.assert_close(queries[:, 30:], sample_cube(draw(), 100, 3.0)[:, 30:])


def test_queries_near_the_surface_may_be_spread_more_or_less() -> None:
    """The logarithm of the spread is uniform: half of the queries are nearer than its geometric mean has them."""
    surface = 50 * torch.randn(4, 60, 3, generator=torch.Generator().manual_seed(0))
    queries = objective_of({"queries": 600, "near": 1.0, "threshold": 0.05, "spread": 0.8}).queries(draw(), surface)
    offsets = torch.cdist(queries, surface).min(dim=2).values.flatten().double() / 3**0.5  # their root mean square per axis
    assert 0.15 < offsets.median() < 0.26  # about the geometric mean, 0.2
    assert (offsets < 0.05).float().mean() > 0.1 and (offsets > 0.4).float().mean() > 0.2


def test_far_points_are_drawn_nearer_but_keep_their_labels() -> None:
    """Labels are of the world as it is; the network sees it contracted."""
    _, batch = make("mcc")
    settings = {"queries": 30, "size": 40.0, "threshold": 9.0, "scale": 0.0, "shift": 0.0, "degrees": 0, "flip": 0.0}
    objective = objective_of(settings, drop_path=0.0)
    queries = objective.queries(draw(), batch["surface"])
    assert (queries.norm(dim=-1) > 10).float().mean() > 0.9
    distance = torch.cdist(queries, batch["surface"]).min(dim=2).values
    logits = objective.model(
        batch["pixels"], torch.where(batch["valid"].unsqueeze(-1), batch["points"], torch.inf), contract(queries, 10.0)
    )[..., 0]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, (distance < 9.0).float())
    assert 0 < (distance < 9.0).sum() < 120
    assert contract(queries, 10.0).norm(dim=-1).max() < 20
    assert objective(batch)["loss_occupancy"].item() != pytest.approx(expected.item(), rel=1e-6)  # contraction twice is another point
    direct = objective.model(batch["pixels"], torch.where(batch["valid"].unsqueeze(-1), batch["points"], torch.inf), queries)[..., 0]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(direct, (distance < 9.0).float())
    assert objective(batch)["loss_occupancy"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_step_has_one_augmentation_within_its_bounds() -> None:
    objective = objective_of({})
    drawn = [objective.augmentation(torch.arange(4) + 4 * step) for step in range(400)]
    scale, shift, degrees = (torch.stack([getattr(each, name) for each in drawn]) for name in ("scale", "shift", "degrees"))
    assert stats.kstest(scale.flatten().numpy(), stats.uniform(0.8, 0.4).cdf).pvalue > 1e-3
    assert stats.kstest(shift.flatten().numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert (degrees == degrees.round()).all() and degrees.min() < -170 and degrees.max() > 170 and degrees.abs().max() <= 180
    assert sum(each.flip for each in drawn) / 400 == pytest.approx(0.5, abs=0.08)
    hypersim = objective_of({"shift": 0, "degrees": 0}).augmentation(draw())
    assert (hypersim.shift == 0).all() and (hypersim.degrees == 0).all() and (hypersim.scale != 1).all()


def test_images_reach_the_network_as_colours_in_0_to_1() -> None:
    preprocess = Preprocess(image_size=32, short_side=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
    colours = uniform(3, 32, 32)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    objective = objective_of({}, ObjectiveContext(preprocess=preprocess))
    torch.testing.assert_close(objective.images((colours - mean) / std), colours)


def test_stochastic_depth_drops_branches_sample_by_sample() -> None:
    objective, batch = make("mcc")
    full = objective.train()(batch)["loss"]
    assert not torch.equal(objective.eval()(batch)["loss"], full)


def test_a_tree_finds_the_labels_that_all_distances_give() -> None:
    truth, queries, colours = torch.randn(2, 500, 3), torch.randn(2, 300, 3), torch.rand(2, 500, 3)
    found, expected = find_labels(queries, truth, colours, 0.3), label_queries(queries, truth, colours, 0.3)
    assert torch.equal(found.occupied, expected.occupied) and torch.equal(found.colours, expected.colours)
    assert 0.1 < found.occupied.mean() < 0.9
