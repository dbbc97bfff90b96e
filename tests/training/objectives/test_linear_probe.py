"""Linear probing: frozen features behind a batch norm, which the released network has in its head."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from models.systems.vit.model import ViT
from tests.training.objectives.cases import VIT_CONFIG, assert_same_gradients, draw, gradients, normal
from training.objectives.linear_probe import LinearProbeObjective
from training.recipe_settings import OptimiserSettings

LABEL = torch.tensor([0, 1, 2, 0])


@pytest.fixture
def objective() -> LinearProbeObjective:
    torch.manual_seed(0)
    return LinearProbeObjective(ViT(VIT_CONFIG))


def test_linear_probe_is_batch_norm_and_layer_on_frozen_features(objective: LinearProbeObjective) -> None:
    norm = nn.BatchNorm1d(16, affine=False, eps=1e-6)
    for step in range(3):
        pixels = normal(3, 16, 16, seed=step)
        values = objective.train()({"pixels": pixels, "label": LABEL, "draw": draw()})
        with torch.no_grad():
            features = objective.model(pixels).features
        expected = nn.functional.cross_entropy(objective.head(norm(features)), LABEL)
        assert values["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
        found = gradients(values["loss"], objective)
        assert set(found) == {"model.head.weight", "model.head.bias"}
        assert_same_gradients(found, gradients(expected, objective))
    torch.testing.assert_close(objective.running_mean, norm.running_mean)
    torch.testing.assert_close(objective.running_var, norm.running_var)


def test_released_network_answers_as_probe_in_evaluation(objective: LinearProbeObjective) -> None:
    for step in range(5):
        objective({"pixels": 3 * normal(3, 16, 16, seed=step), "label": LABEL, "draw": draw()})
    objective.eval()
    pixels = normal(3, 16, 16, seed=9)
    expected = objective.head(objective.normalise(objective.model(pixels).features))
    torch.testing.assert_close(objective.released_network()(pixels).logits, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(objective.model(pixels).logits, expected, atol=1e-3)


def test_head_starts_small_and_is_all_that_is_optimised(objective: LinearProbeObjective) -> None:
    assert 0 < objective.head.weight.std() < 0.02 and (objective.head.bias == 0).all()
    [group] = objective.parameter_groups(OptimiserSettings(lr=1, weight_decay=0.0))
    assert group["names"] == ["weight", "bias"] and group["weight_decay"] == 0.0
    assert not objective.train().model.training


def test_a_network_without_a_head_is_refused() -> None:
    with pytest.raises(ValueError, match="classes"):
        LinearProbeObjective(ViT(replace(VIT_CONFIG, classes=0)))
