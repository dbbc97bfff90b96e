"""LART's learning rates and parameter groups, by what the description of its code says of each."""

from __future__ import annotations

import pytest

from models.lart.model import LART, LARTConfig
from models.people.heads import Feature
from training.optim_lart import finetuning_groups, pretraining_groups, warmup_cosine

CONFIG = LARTConfig(
    pose=Feature(229, 8, 8), joints=None, appearance=Feature(6, 8, 8), depth=3, heads=2, head_dim=8, hidden=16, regressor_hidden=8
)


def test_the_rate_rises_for_five_epochs_and_then_falls_to_nothing() -> None:
    rates = [warmup_cosine(epoch, lr=1e-4) for epoch in range(30)]
    assert rates[:5] == pytest.approx([0.2e-4, 0.4e-4, 0.6e-4, 0.8e-4, 1e-4])
    assert rates[29] == pytest.approx(0.0, abs=1e-12)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[16] + rates[17] == pytest.approx(1e-4, rel=0.01)  # half way


def test_everything_decays_in_training_and_is_in_exactly_one_group() -> None:
    model = LART(CONFIG)
    [group] = pretraining_groups(model)
    assert group["names"] == [name for name, _ in model.named_parameters()]
    assert (group["weight_decay"], group["lr_scale"]) == (0.05, 1.0)


def test_fine_tuning_slows_what_comes_before_the_blocks_and_nothing_else() -> None:
    model = LART(CONFIG)
    groups = finetuning_groups(model)
    of = {name: group for group in groups for name in group["names"]}
    assert of.keys() == {name for name, _ in model.named_parameters()}
    assert sum(len(group["names"]) for group in groups) == len(of)
    slow = pytest.approx(0.95**4)
    for name in ("mask_token", "class_token", "pos_embed", "pose_encoder.0.weight", "appearance_encoder.4.bias"):
        assert of[name]["lr_scale"] == slow, name
    for name in ("blocks.0.attn.qkv.weight", "blocks.2.norm1.bias", "heads.actions.weight", "kinetics.0.weight"):
        assert of[name]["lr_scale"] == 1.0, name
    for name, parameter in model.named_parameters():
        assert of[name]["weight_decay"] == (0.0 if parameter.dim() == 1 else 0.05), name
