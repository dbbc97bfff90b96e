"""Every encoder that is a ViT can have a reversible trunk: two streams, recomputed in training, with the gradients of plain autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.merge_schedule import MergeSchedule
from models.systems.image_text.cit import CiT, CiTConfig, VisionTower
from models.systems.image_text.flip import FLIP, FLIPConfig
from models.systems.image_text.maws import MAWSClip, MAWSClipConfig
from models.systems.mae.model import MAE, MAEConfig, init_vit_from_mae
from models.systems.mae_st.model import VideoMAE, VideoMAEConfig
from models.systems.mae_st.model import init_video_mae_from_pretraining as start_video
from models.systems.mae_st.pretraining import VideoMAEPretraining, VideoMAEPretrainingConfig
from models.systems.vit.model import Pool, ViT, ViTConfig

TRUNK: dict[str, Any] = {"image_size": 16, "patch_size": 4, "width": 24, "depth": 3, "heads": 4}
DECODER: dict[str, Any] = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
TEXT: dict[str, Any] = {"vocabulary": 20, "text_width": 16, "text_depth": 1, "text_heads": 2, "text_hidden": 32, "joint_width": 8}

PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CLIPS = torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
NOISE = torch.rand(2, 32, generator=torch.Generator().manual_seed(2))
WORDS = torch.tensor([[2, 5, 9, 3], [2, 7, 3, 0]])

MAE_CONFIG = MAEConfig(**TRUNK, **DECODER)
VIDEO_MAE = VideoMAEPretrainingConfig(**TRUNK, **DECODER, frames=4, predicted_frames=2)

Case = tuple[Callable[[Any], nn.Module], Any, Callable[[Any], Tensor]]

ENCODERS: Mapping[str, Case] = {
    "mae": (MAE, MAE_CONFIG, lambda model: model(PIXELS, NOISE[:, :16]).loss),
    "video_mae": (VideoMAE, VideoMAEConfig(**TRUNK, frames=4, classes=5), lambda model: model(CLIPS).logits.square().sum()),
    "video_mae_pretraining": (VideoMAEPretraining, VIDEO_MAE, lambda model: model(CLIPS, NOISE).loss),
    "flip": (FLIP, FLIPConfig(**TRUNK, **TEXT, text_length=4), lambda model: model(PIXELS, WORDS, NOISE[:, :16]).loss),
    "cit": (CiT, CiTConfig(**TRUNK, **TEXT, tower=VisionTower.SWAG, positions=8), lambda model: model(PIXELS, WORDS)),
    "maws_clip": (MAWSClip, MAWSClipConfig(**TRUNK, **TEXT, positions=8), lambda model: model(PIXELS, WORDS).square().sum()),
}
"""Architecture → class, config, and a scalar that depends on all of the encoder."""


@pytest.mark.parametrize("name", ENCODERS)
def test_recomputed_gradients_are_those_of_plain_autograd(name: str) -> None:
    kind, config, objective = ENCODERS[name]
    torch.manual_seed(0)
    model = kind(replace(config, reversible=True)).double().eval()
    plain = gradients(model, objective)
    getattr(model, "vision", model).train()  # the text towers have dropout
    recomputed = gradients(model, objective)
    assert plain.keys() == recomputed.keys()
    for parameter, gradient in plain.items():
        torch.testing.assert_close(recomputed[parameter], gradient, rtol=1e-8, atol=1e-10, msg=parameter)


def gradients(model: nn.Module, objective: Callable[[Any], Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    objective(model).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_pretrained_reversible_encoder_starts_image_classifier() -> None:
    pretrained = MAE(replace(MAE_CONFIG, reversible=True))
    model = ViT(ViTConfig(**TRUNK, classes=5, pool=Pool.MEAN, reversible=True))
    init_vit_from_mae(model, pretrained.state_dict())
    assert torch.equal(model.blocks[2].mlp.fc2.weight, pretrained.blocks[2].mlp.fc2.weight)


def test_and_one_of_clips_whose_tokens_merge() -> None:
    pretrained = VideoMAEPretraining(replace(VIDEO_MAE, reversible=True))
    model = VideoMAE(VideoMAEConfig(**TRUNK, frames=4, classes=5, reversible=True)).eval()
    start_video(model, pretrained.state_dict())
    full, merged = (model(CLIPS.float(), merge=schedule) for schedule in (None, MergeSchedule.from_list([4, 0, 3])))
    assert (full.tokens_out, merged.tokens_out) == (33, 26)
    assert full.features.shape == merged.features.shape == (2, 2 * TRUNK["width"])
