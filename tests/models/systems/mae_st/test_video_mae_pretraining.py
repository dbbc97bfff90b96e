"""MAE-ST's pre-training beyond the recorded cases (tests/golden/mae_st), its published size, and the way to fine-tuning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.checkpoints import families, fit, read_checkpoint
from models.systems.mae_st.model import VideoMAE, VideoMAEConfig, init_video_mae_from_pretraining
from models.systems.mae_st.pretraining import VideoMAEPretraining, VideoMAEPretrainingConfig
from tests.golden.case import published_keys, read_case
from tests.golden.checks import detected_at_full_size
from tests.golden.replays.mae_st import load_finetuned, load_pretraining
from training.optim import pretraining_groups

GOLDEN = Path(__file__).parents[3] / "golden" / "mae_st"

SMALL = VideoMAEPretrainingConfig(
    image_size=16,
    patch_size=8,
    frames=4,
    width=32,
    depth=2,
    heads=4,
    decoder_width=16,
    decoder_depth=1,
    decoder_heads=2,
    predicted_frames=2,
    mask_ratio=0.5,
)  # 2 · 4 patches


def build_seeded(config: VideoMAEPretrainingConfig) -> VideoMAEPretraining:
    torch.manual_seed(0)
    return VideoMAEPretraining(config).eval()


def clips(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("predicted_frames", [2, 4])
def test_every_layout_survives_export_and_import(class_token: bool, separate: bool, predicted_frames: int) -> None:
    config = replace(SMALL, class_token=class_token, separate_positions=separate, predicted_frames=predicted_frames)
    model, noise = build_seeded(config), torch.rand(2, 8)
    published = families()["mae_st_pretrained"].export(model.state_dict())
    assert ("decoder_cls_token" in published, "decoder_pos_embed_temporal" in published) == (class_token, separate)
    found = fit(published, families()["mae_st_pretrained"], {"heads": 4, "decoder_heads": 2, "frames": 4, "mask_ratio": 0.5})
    assert found.perfect
    answer = model(clips(), noise)
    assert torch.equal(found.model()(clips(), noise).loss, answer.loss)
    assert model.to_clips(answer.patches).shape == (2, 3, predicted_frames, 16, 16)


def test_only_removed_patches_count_for_the_loss() -> None:
    for normalised in (True, False):
        model = build_seeded(replace(SMALL, normalise_targets=normalised))
        answer, patches = model(clips(), torch.rand(2, 8)), model.target_patches(clips())
        if normalised:
            patches = (patches - patches.mean(dim=-1, keepdim=True)) / (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()
        errors = (answer.patches - patches).square().mean(dim=-1)
        torch.testing.assert_close(answer.loss, errors[answer.mask == 1].mean())
        assert answer.mask.sum(dim=1).tolist() == [4, 4]


def test_positions_are_those_of_the_patches_that_are_kept() -> None:
    """Keeping all patches in another order gives the same tokens in that order."""
    model, order = build_seeded(SMALL), torch.tensor([[5, 2, 7, 0, 1, 6, 4, 3]])
    straight, shuffled = (model.encode_visible(clips(1), retained) for retained in (torch.arange(8).unsqueeze(0), order))
    torch.testing.assert_close(shuffled, straight[:, order[0]])


def test_target_frames_are_truncated_and_end_with_the_clip() -> None:
    with torch.device("meta"):
        model = VideoMAEPretraining(VideoMAEPretrainingConfig())
    assert model.target_frames().device.type == "cpu"
    assert model.target_frames().tolist() == [0, 2, 4, 6, 8, 10, 12, 15]
    assert (model.config.visible, model.config.patches) == (156, 1568)


def test_what_is_predicted_comes_back_as_frames() -> None:
    model = build_seeded(replace(SMALL, predicted_frames=4, normalise_targets=False))
    assert torch.equal(model.to_clips(model.target_patches(clips())), clips())


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="predicted_frames: 3"):
        replace(SMALL, predicted_frames=3)
    with pytest.raises(ValueError, match=r"clips: shape \(1, 3, 8, 16, 16\)"):
        build_seeded(SMALL)(torch.zeros(1, 3, 8, 16, 16), torch.rand(1, 8))


@pytest.mark.parametrize("truncated", [False, True])
def test_initialisation_is_the_published_one(truncated: bool) -> None:
    model = build_seeded(replace(SMALL, width=256, truncated_init=truncated))
    kernel, linear = model.patch_embed.proj.weight, model.blocks[0].mlp.fc1.weight
    limit = (6 / (256 + 1024)) ** 0.5
    assert (linear.abs().max() <= limit) != truncated
    assert (kernel.std() > 0.8) == truncated
    assert model.decoder_cls_token is not None and not model.decoder_cls_token.any()
    assert 0.015 < model.pos_embed.spatial.std() < 0.025
    assert model.pos_embed.spatial.requires_grad


def test_every_parameter_learns_and_positions_decay() -> None:
    model = build_seeded(SMALL).train()
    model(clips(), torch.rand(2, 8)).loss.backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []
    decay = {name: group["weight_decay"] for group in pretraining_groups(model, 0.05) for name in group["names"]}
    assert decay["pos_embed.temporal"] == decay["mask_token"] == decay["decoder_cls_token"] == 0.05
    assert decay["norm.weight"] == decay["norm.bias"] == 0.0
    decay = {name: group["weight_decay"] for group in pretraining_groups(model, 0.05, decay_norms=True) for name in group["names"]}
    assert (decay["norm.weight"], decay["norm.bias"]) == (0.05, 0.0)


def test_fine_tuning_starts_from_the_encoder_and_its_norm() -> None:
    pretrained = build_seeded(SMALL)
    torch.nn.init.normal_(pretrained.norm.weight)
    config = VideoMAEConfig(image_size=16, patch_size=8, frames=4, classes=3, width=32, depth=2, heads=4)
    model = VideoMAE(config)
    init_video_mae_from_pretraining(model, pretrained.state_dict())
    assert torch.equal(model.norm.weight, pretrained.norm.weight)
    assert torch.equal(model.pos_embed.temporal, pretrained.pos_embed.temporal)
    assert 1e-5 < model.head.weight.std() < 3e-5
    with pytest.raises(ValueError, match=r"another shape: pos_embed\.temporal"):
        init_video_mae_from_pretraining(VideoMAE(replace(config, frames=8)), pretrained.state_dict())


SIZES = published_keys("mae_st")


@pytest.mark.parametrize("shapes", [pytest.param(content["params"], id=name) for name, content in SIZES.items()])
def test_published_files_load_strictly_at_full_size(shapes: dict[str, list[int]]) -> None:
    model = detected_at_full_size(shapes)
    million = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert million == pytest.approx(317.7 if "decoder_pred.weight" in shapes else 304.5, abs=0.1)


@pytest.mark.parametrize(
    ("case", "family", "settings"),
    [
        ("finetune_sep_cls", "mae_st", {}),
        ("pretrain_sep_cls", "mae_st_pretrained", {}),
        ("pretrain_joint_nocls", "mae_st_pretrained", {"frames": 6}),
    ],
)
def test_a_checkpoint_survives_the_way_to_our_names_and_back(case: str, family: str, settings: dict[str, Any]) -> None:
    published = read_checkpoint(GOLDEN / case / "checkpoint.pth")
    found = fit(published, families()[family], {"heads": 1, "decoder_heads": 1, **settings} if "pretrain" in case else {"heads": 1})
    assert found.perfect
    exported = families()[family].export(found.weights)
    assert exported.keys() == published.keys()
    assert all(torch.equal(exported[key], value) for key, value in published.items())


def test_the_head_of_slowfast_files_is_understood() -> None:
    published = read_checkpoint(GOLDEN / "finetune_slowfast_ckpt" / "checkpoint.pth")
    found = fit(published, families()["mae_st"], {"heads": 3})
    assert found.perfect
    assert torch.equal(families()["mae_st"].export(found.weights)["head.weight"], published["head.projection.weight"])


@pytest.mark.parametrize("name", ["finetune_sep_cls", "finetune_slowfast_ckpt", "pretrain_sep_cls", "pretrain_joint_nocls"])
def test_bfloat16_is_within_three_percent_of_recording(name: str) -> None:
    case = read_case(GOLDEN / name)
    video = case.inputs["video"].bfloat16()
    with torch.inference_mode():
        if "pretrain" in name:
            got, recorded = load_pretraining(case).bfloat16()(video, case.inputs["noise"]).patches, case.outputs["pred"]
        else:
            got, recorded = load_finetuned(case).bfloat16()(video).logits, case.outputs["logits"]
    assert (got.float() - recorded).norm() < 0.03 * recorded.norm()
