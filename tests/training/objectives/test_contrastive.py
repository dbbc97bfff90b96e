"""Matching of images and texts: the loss pair by pair, masks, what is frozen and what decays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.systems.image_text.flip import FLIP
from tests.training.objectives.cases import BATCH, FLIP_CONFIG, assert_same_gradients, draw, gradients, make, normal, uniform
from training import random_draws
from training.objectives.contrastive import ContrastiveObjective, ContrastiveSettings, contrast
from training.recipe_settings import OptimiserSettings

OPTIMISER = OptimiserSettings(lr=1.0, weight_decay=0.2)


def written_out(x: Tensor, y: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor]:
    """Mean negative log-probability of each row's partner, for x among y, and for y among x."""
    losses = []
    for ours, others in ((x, y), (y, x)):
        rows = []
        for place in range(len(ours)):
            scores = torch.stack([scale * (ours[place] * other).sum() for other in others])
            rows.append(scores.exp().sum().log() - scores[place])
        losses.append(torch.stack(rows).mean())
    return losses[0], losses[1]


def test_each_row_finds_its_partner_both_ways() -> None:
    x, y = (torch.nn.functional.normalize(normal(8, seed=seed), dim=1).requires_grad_() for seed in (1, 2))
    forth, back = written_out(x, y, 5.0)
    both, one = contrast(x, y, 5.0), contrast(x, y, 5.0, symmetric=False)
    assert both["loss"].item() == pytest.approx(((forth + back) / 2).item(), rel=1e-6)
    assert one["loss"].item() == pytest.approx(forth.item(), rel=1e-6)
    for got, expected in zip(torch.autograd.grad(both["loss"], (x, y)), torch.autograd.grad((forth + back) / 2, (x, y)), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)
    nearest = [max(range(BATCH), key=lambda other, row=row: float((row @ y[other]).detach())) for row in x]
    assert both["accuracy"].item() == sum(found == place for place, found in enumerate(nearest)) / BATCH


@pytest.mark.parametrize("masked", [True, False])
def test_flip_encodes_random_half_of_patches_or_all_if_unmasked(masked: bool) -> None:
    torch.manual_seed(0)
    model, words = FLIP(FLIP_CONFIG), (uniform(6) * 40).long()
    objective = ContrastiveObjective(model, ContrastiveSettings(masked=masked))
    loss = objective({"pixels": normal(3, 16, 16), "words": words, "draw": draw()})["loss"]
    noise = random_draws.uniform(draw(), (16,), "mask")
    visible = noise.argsort(dim=1)[:, :8] if masked else torch.arange(16).expand(BATCH, -1)
    features = model.vision_projection(model.vision(normal(3, 16, 16), visible=visible).features)
    images = features / features.norm(dim=1, keepdim=True)
    texts = model.text_projection(model.text(words))
    forth, back = written_out(images, texts / texts.norm(dim=1, keepdim=True), model.scale())
    expected = (forth + back) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(gradients(loss, objective), gradients(expected, objective), 2e-5)


def test_losses_of_several_texts_of_an_image_are_averaged() -> None:
    torch.manual_seed(0)
    model, images = FLIP(FLIP_CONFIG), normal(3, 16, 16)
    first, second = (uniform(6, seed=seed) * 40 for seed in (1, 2))
    both = torch.stack([first, second], dim=1).long()
    alone = [ContrastiveObjective(model, ContrastiveSettings()).losses(images, text.long())["loss"] for text in (first, second)]
    joint = ContrastiveObjective(model, ContrastiveSettings()).losses(images, both)["loss"]
    assert joint.item() == pytest.approx((sum(alone) / 2).item(), rel=1e-5)


def test_a_frozen_tower_stays_and_is_evaluated() -> None:
    objective, _ = make("lit")
    objective.train()
    model = objective.get_submodule("model")
    assert not any(parameter.requires_grad for parameter in model.get_submodule("vision").parameters())
    assert not model.get_submodule("vision").training and model.get_submodule("text").training
    assert all(parameter.requires_grad for parameter in model.get_submodule("text").parameters())


def test_biases_norms_and_positions_do_not_decay() -> None:
    groups = ContrastiveObjective(FLIP(FLIP_CONFIG), ContrastiveSettings()).parameter_groups(OPTIMISER)
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert decay["logit_scale"] == decay["vision.cls_token"] == decay["text.token_embed.weight"] == decay["vision_projection.weight"] == 0.2
    assert decay["text.pos_embed"] == decay["vision.norm.weight"] == decay["text.blocks.0.norm1.weight"] == 0.0
    assert decay["vision.blocks.0.mlp.fc1.bias"] == 0.0 and decay["vision.blocks.0.mlp.fc1.weight"] == 0.2
    assert "vision.pos_embed" not in decay  # fixed
