"""LART's learning rates and parameter groups, by what the description of its code says of each."""

from __future__ import annotations

import pytest

from models.people.heads import TrackFeatureDims
from models.systems.lart.model import LART, LARTConfig
from training.optim_lart import finetuning_groups, pretraining_groups

CONFIG = LARTConfig(
    pose=TrackFeatureDims(229, 8, 8),
    joints=None,
    appearance=TrackFeatureDims(6, 8, 8),
    depth=3,
    heads=2,
    head_dim=8,
    hidden=16,
    regressor_hidden=8,
)


def test_every_parameter_decays_in_exactly_one_group() -> None:
    model = LART(CONFIG)
    [group] = pretraining_groups(model)
    assert group["names"] == [name for name, _ in model.named_parameters()]
    assert (group["weight_decay"], group["lr_scale"]) == (0.05, 1.0)


def test_fine_tuning_slows_only_layers_before_blocks() -> None:
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
