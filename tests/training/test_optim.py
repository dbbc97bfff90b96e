"""Parameter groups and learning rates beyond the recorded cases (tests/golden/mae)."""

from __future__ import annotations

import pytest
import torch

from models.systems.mae.model import MAE, MAEConfig
from models.systems.vit.model import Pool, ViT, ViTConfig
from training.optim import layer_decay_groups, pretraining_groups, scheduled_lr, warmup_cosine
from training.recipe_settings import ScheduleSettings


def test_the_rate_rises_linearly_and_falls_to_the_minimum() -> None:
    rates = [warmup_cosine(epoch, lr=2.0, min_lr=0.5, warmup_epochs=4, epochs=20) for epoch in (0, 1, 4, 12, 20)]
    assert rates == pytest.approx([0.0, 0.5, 2.0, 1.25, 0.5])


def test_without_a_warm_up_the_rate_starts_at_its_peak() -> None:
    assert warmup_cosine(0, lr=1.0, min_lr=0.0, warmup_epochs=0, epochs=10) == 1.0


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_rate_stays_at_minimum_if_epochs_end_after_phase(kind: str) -> None:
    settings = ScheduleSettings.model_validate({"kind": kind, "every": "epoch", "warmup": 0, "min_lr": 0.1})
    rates = [scheduled_lr(settings, epoch, lr=1.0, epochs=1.5) for epoch in (0.0, 0.9, 1.0, 1.4)]
    assert rates[0] == rates[1] > rates[2] == rates[3] == pytest.approx(0.1)
    full = ScheduleSettings.model_validate({"kind": kind, "warmup": 2})
    assert scheduled_lr(full, 2.0, lr=1.0, epochs=2) == full.min_lr, "a warm-up that lasts as long as the phase"


def test_pretraining_decays_matrices_and_tokens_only() -> None:
    model = MAE(MAEConfig(image_size=16, patch_size=8, width=16, depth=1, heads=2, decoder_width=8, decoder_depth=1, decoder_heads=2))
    decay = {name: group["weight_decay"] for group in pretraining_groups(model, 0.05) for name in group["names"]}
    assert decay.keys() == {name for name, _ in model.named_parameters()} - {"pos_embed", "decoder_pos_embed"}
    assert decay["cls_token"] == decay["mask_token"] == decay["blocks.0.attn.qkv.weight"] == 0.05
    assert decay["blocks.0.attn.qkv.bias"] == decay["norm.weight"] == 0.0


def test_groups_are_what_an_optimiser_takes() -> None:
    model = ViT(ViTConfig(image_size=16, patch_size=8, classes=3, width=16, depth=2, heads=2, pool=Pool.MEAN))
    groups = layer_decay_groups(model, layer_decay=0.5, weight_decay=0.05)
    optimiser = torch.optim.AdamW(groups, lr=1e-3)
    assert sum(len(group["params"]) for group in optimiser.param_groups) == len(list(model.parameters()))
    assert {group["lr_scale"] for group in optimiser.param_groups} == {0.125, 0.25, 0.5, 1.0}
