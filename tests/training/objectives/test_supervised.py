"""Classification: the loss written out, merge schedules, stochastic depth, parameter groups."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models.merge_schedule import MergeSchedule
from models.systems.mvit.model import MViT, MViTConfig
from models.systems.vit.model import ViT
from tests.training.objectives.cases import VIT_CONFIG, assert_same_gradients, draw, gradients, normal, uniform
from training.errors import TrainingError
from training.objectives.supervised import SupervisedObjective, SupervisedSettings, keep_branches
from training.optim import ParameterGroup
from training.recipe_settings import OptimiserSettings

LABEL = torch.tensor([0, 1, 2, 0])


@pytest.fixture
def vit() -> ViT:
    torch.manual_seed(1)
    return ViT(VIT_CONFIG)


def batch(**extra: Tensor) -> dict[str, Tensor]:
    return {"pixels": normal(3, 16, 16), "draw": draw(), **extra}


def written_out(logits: Tensor, targets: list[list[float]]) -> Tensor:
    """Cross-entropy, sample by sample and class by class."""
    losses = []
    for row, probabilities in zip(logits, targets, strict=True):
        total = row.exp().sum().log()
        losses.append(sum(p * (total - value) for p, value in zip(probabilities, row, strict=True)))
    return torch.stack(losses).mean()


def test_the_loss_is_smoothed_cross_entropy_under_the_schedule(vit: ViT) -> None:
    objective = SupervisedObjective(vit, SupervisedSettings(label_smoothing=0.3, merge=[4]))
    values = objective(batch(label=LABEL))
    logits = vit(normal(3, 16, 16), merge=MergeSchedule.constant(4)).logits
    targets = [[0.8 if label == place else 0.1 for place in range(3)] for label in LABEL.tolist()]
    expected = written_out(logits, targets)
    assert values["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(gradients(values["loss"], objective), gradients(expected, objective))
    assert values["accuracy"].item() == (logits.argmax(dim=1) == LABEL).float().mean().item()


def test_labels_may_be_probabilities(vit: ViT) -> None:
    labels = uniform(3).softmax(dim=1)
    values = SupervisedObjective(vit)(batch(labels=labels))
    assert values["loss"].item() == pytest.approx(written_out(vit(normal(3, 16, 16)).logits, labels.tolist()).item(), rel=1e-5)


def test_several_labels_are_learnt_one_by_one(vit: ViT) -> None:
    labels = uniform(3).round()
    values = SupervisedObjective(vit, SupervisedSettings(multi_label=True))(batch(labels=labels))
    scores = vit(normal(3, 16, 16)).logits.sigmoid()
    expected = -torch.where(labels == 1, scores, 1 - scores).log().mean()
    assert values["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_every_schedule_gets_its_turn_and_steps_differ(vit: ViT) -> None:
    alone = {round(SupervisedObjective(vit, SupervisedSettings(merge=[r]))(batch(label=LABEL))["loss"].item(), 6) for r in (0, 3, 6)}
    assert len(alone) == 3
    objective = SupervisedObjective(vit, SupervisedSettings(merge=[0, 3, 6]))
    drawn = [round(objective(batch(label=LABEL) | {"draw": draw() + step})["loss"].item(), 6) for step in range(40)]
    assert set(drawn) == alone


def test_merging_lets_every_parameter_learn(vit: ViT) -> None:
    values = SupervisedObjective(vit, SupervisedSettings(merge=[5]))(batch(label=LABEL))
    assert all(gradient.abs().sum() > 0 for gradient in gradients(values["loss"], vit).values())


def test_a_tower_that_does_not_merge_has_no_schedule() -> None:
    model = MViT(MViTConfig(frames=2, image_size=32, depth=1, width=8, heads=1, q_strides=(), width_growth=(), head_growth=(), classes=2))
    with pytest.raises(ValueError, match="merge: tokens of MViT do not merge"):
        SupervisedObjective(model, SupervisedSettings(merge=[2]))


def test_branches_are_dropped_at_their_rates_sample_by_sample() -> None:
    retained = keep_branches(torch.arange(20_000), 0.4, 3, reversible=False)
    assert retained is not None and retained.shape == (3, 2, 20_000)
    torch.testing.assert_close(retained.mean(dim=2), torch.tensor([1.0, 0.8, 0.6]).unsqueeze(1).expand(3, 2), atol=0.015, rtol=0)
    alone = keep_branches(torch.tensor([7]), 0.4, 3, reversible=False)
    assert alone is not None and torch.equal(alone[..., 0], retained[..., 7])
    both = keep_branches(torch.arange(20_000), 0.4, 3, reversible=True)
    assert both is not None and both.shape == (3, 20_000) and both[2].mean().item() == pytest.approx(0.6, abs=0.015)
    assert keep_branches(torch.arange(4), 0.0, 3, reversible=False) is None


def test_nothing_is_dropped_in_evaluation() -> None:
    torch.manual_seed(1)
    model = ViT(replace(VIT_CONFIG, drop_path=0.9))
    objective = SupervisedObjective(model).eval()
    torch.testing.assert_close(objective.classify(normal(3, 16, 16), draw()), model(normal(3, 16, 16)).logits)
    assert not torch.allclose(objective.train().classify(normal(3, 16, 16), draw()), model.eval()(normal(3, 16, 16)).logits)


def settings_of(groups: list[ParameterGroup]) -> dict[str, tuple[float, float]]:
    return {name: (group["lr_scale"], group["weight_decay"]) for group in groups for name in group["names"]}


def test_vit_and_reversible_layers_learn_by_layer_decay(vit: ViT) -> None:
    found = settings_of(SupervisedObjective(vit).parameter_groups(OptimiserSettings(lr=1, weight_decay=0.1, layer_decay=0.5)))
    assert found["pos_embed"] == (0.125, 0.0)
    assert found["blocks.1.mlp.fc1.weight"] == (0.5, 0.1)
    assert found["head.weight"] == (1.0, 0.1)
    reversible = SupervisedObjective(ViT(replace(VIT_CONFIG, reversible=True, class_token=False)))
    found = settings_of(reversible.parameter_groups(OptimiserSettings(lr=1, weight_decay=0.1)))
    assert found["pos_embed"] == found["blocks.0.attn.qkv.weight"] == (1.0, 0.1)
    assert found["norm.weight" if isinstance(reversible.model.fc_norm, nn.Identity) else "fc_norm.weight"] == (1.0, 0.0)
    with pytest.raises(TrainingError, match="layer_decay"):
        reversible.parameter_groups(OptimiserSettings(lr=1, layer_decay=0.5))
