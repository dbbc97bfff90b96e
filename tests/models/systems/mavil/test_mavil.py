"""MAViL beyond the recorded cases (tests/golden/mavil): gradients, invariants, published sizes and the way to them and back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.checkpoints import families, fit, import_checkpoint, read_checkpoint
from models.layers.masked_encoder import Masking
from models.layers.patches import patchify, patchify_tubes
from models.merge_schedule import MergeSchedule
from models.systems.mae.model import MAE, MAEConfig
from models.systems.mavil.model import SIZES, MAViL, MAViLConfig, TowersConfig, fuse, init_from_mavil_pretraining, keep_time_mel_grid
from models.systems.mavil.pretraining import (
    MaskNoise,
    MAViLPretraining,
    MAViLPretrainingConfig,
    audio_weights_from_video,
    info_nce,
    video_weights_from_images,
)
from tests.golden.case import published_keys, read_case
from tests.golden.checks import detected_at_full_size
from tests.golden.replays.mavil import load_finetuned, load_pretraining, noise_of
from training.optim import layer_decay_groups

GOLDEN = Path(__file__).parents[3] / "golden" / "mavil"

TOWERS: dict[str, Any] = {
    "audio_frames": 32,
    "mel_bins": 16,
    "audio_patch_size": 8,
    "frames": 4,
    "image_size": 16,
    "patch_size": 8,
    "width": 32,
    "depth": 2,
    "heads": 4,
}  # 4 · 2 patches of sound, 2 · 2 · 2 of pictures

FUSED = MAViLConfig(**TOWERS, fusion_depth=3, classes=5)
WITHOUT_FUSION = replace(FUSED, fusion_depth=0)
PRETRAINING = MAViLPretrainingConfig(**TOWERS, decoder_width=16, decoder_depth=1, decoder_heads=2, mask_ratio=0.5)


def build_seeded(model: type[nn.Module], config: Any) -> Any:
    torch.manual_seed(0)
    return model(config).eval()


def sound(batch: int = 2) -> Tensor:
    return torch.randn(batch, 1, 32, 16, generator=torch.Generator().manual_seed(1))


def pictures(batch: int = 2, frames: int = 4) -> Tensor:
    return torch.randn(batch, 3, frames, 16, 16, generator=torch.Generator().manual_seed(2))


def noise(batch: int = 2) -> MaskNoise:
    generator = torch.Generator().manual_seed(3)
    first, second, third, fourth = (torch.rand(batch, 8, generator=generator) for _ in range(4))
    return MaskNoise((first, second), (third, fourth))


def test_frames_beyond_the_models_are_not_seen() -> None:
    model, longer = build_seeded(MAViL, FUSED), pictures(frames=6)
    assert torch.equal(model(sound(), longer).logits, model(sound(), longer[:, :, :4]).logits)
    with pytest.raises(ValueError, match=r"video: shape \(2, 3, 2, 16, 16\); \(batch, 3, 4, 16, 16\)"):
        model(sound(), longer[:, :, :2])
    with pytest.raises(ValueError, match=r"audio: shape \(2, 1, 16, 32\)"):
        model(sound().transpose(2, 3), longer)


def test_each_model_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="`forward_audio` and `forward_video`"):
        build_seeded(MAViL, WITHOUT_FUSION)(sound(), pictures())
    with pytest.raises(ValueError, match="needs audio and video"):
        build_seeded(MAViL, FUSED).forward_audio(sound())


def test_scores_are_of_several_labels_or_of_one() -> None:
    several, one = (build_seeded(MAViL, replace(FUSED, multi_label=many))(sound(), pictures()) for many in (True, False))
    assert torch.equal(several.scores, one.logits.sigmoid())
    torch.testing.assert_close(one.scores.sum(dim=1), torch.ones(2))


@pytest.mark.parametrize(("classes", "several"), [(527, True), (309, False)])
def test_a_file_of_vggsound_is_known_by_its_classes(classes: int, several: bool) -> None:
    published = families()["mavil"].export(MAViL(replace(FUSED, classes=classes)).state_dict())
    assert fit(published, families()["mavil"], {"mel_bins": 16, "frames": 4, "heads": 4}).config().multi_label is several


def test_keeping_everything_in_another_order_changes_nothing() -> None:
    model, order = build_seeded(MAViL, FUSED), torch.randperm(8, generator=torch.Generator().manual_seed(0)).expand(2, -1)
    shuffled = model(sound(), pictures(), audio_ids_keep=order, video_ids_keep=order)
    torch.testing.assert_close(shuffled.logits, model(sound(), pictures()).logits)


def test_dropped_patches_have_no_effect() -> None:
    model, retained = build_seeded(MAViL, WITHOUT_FUSION), keep_time_mel_grid(torch.rand(2, 4), torch.rand(2, 2), 0.25, 0.5)
    assert retained.shape == (2, 3)
    mask = torch.zeros(2, 8).scatter(1, retained, 1.0).view(2, 1, 4, 2)
    assert mask.sum(dim=2).flatten(1).sort(dim=1).values.tolist() == [[0, 3], [0, 3]]  # three times of one mel row
    pixels = mask.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    torch.testing.assert_close(
        model.forward_audio(sound() * pixels, ids_keep=retained).logits, model.forward_audio(sound(), ids_keep=retained).logits
    )


@pytest.mark.parametrize("proportional", [False, True])
def test_tokens_of_both_halves_merge(proportional: bool) -> None:
    model = build_seeded(MAViL, replace(FUSED, proportional_attention=proportional))
    plain, merged = model(sound(), pictures()), model(sound(), pictures(), merge=MergeSchedule.constant(2))
    assert (plain.tokens_in, plain.tokens_out, merged.tokens_in, merged.tokens_out) == (18, 18, 18, 10)
    assert torch.equal(model(sound(), pictures(), merge=MergeSchedule.constant(0)).logits, plain.logits)


def test_merging_equal_tokens_changes_nothing_if_size_weighted() -> None:
    """Patches without positions and of one colour are all equal: merged or not, the mean and what attention sees are the same."""
    model = build_seeded(MAViL, replace(FUSED, proportional_attention=True))
    model.audio.pos_embed.data.zero_()
    model.video.pos_embed.data.zero_()
    flat = torch.full((1, 1, 32, 16), 0.5), torch.full((1, 3, 4, 16, 16), -0.5)
    torch.testing.assert_close(model(*flat, merge=MergeSchedule.constant(2)).features, model(*flat).features)


def test_only_audio_blocks_drop_paths() -> None:
    model = MAViL(replace(FUSED, drop_path=0.1))
    assert [block.drop_path for block in model.audio.blocks] == [0.0, 0.1]
    assert {block.drop_path for block in [*model.video.blocks, *model.blocks_av]} == {0.0}


def test_layer_decay_counts_fusion_blocks_from_the_bottom() -> None:
    groups = layer_decay_groups(
        MAViL(FUSED), layer_decay=0.75, weight_decay=5e-4, scale_of=lambda name: 0.5 if name.startswith("video.") else 1.0
    )
    rates = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert rates["audio.cls_token"] == rates["audio.patch_embed.proj.weight"] == 0.75**3
    assert rates["audio.blocks.0.attn.qkv.weight"] == rates["blocks_av.0.attn.qkv.weight"] == 0.75**2
    assert rates["blocks_av.2.mlp.fc1.bias"] == 1.0
    assert rates["video.blocks.1.mlp.fc1.bias"] == 0.75 / 2
    assert rates["head.av.weight"] == rates["fc_norm.av.bias"] == 1.0
    assert not {"audio.pos_embed", "video.pos_embed"} & rates.keys()
    decays = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert decays["video.cls_token"] == 0.0 and decays["head.av.weight"] == 5e-4


def test_the_loss_of_pre_training_written_out() -> None:
    model = build_seeded(MAViLPretraining, replace(PRETRAINING, normalise_targets=False, inter_weight=0.3, intra_weight=0.2))
    learned = model(sound(), pictures(), noise())
    audible, seen = patchify(sound(), 8), patchify_tubes(pictures(), 2, 8)
    for half, patches in ((learned.audio, audible), (learned.video, seen)):
        errors = (half.predicted - patches).square().mean(dim=-1)
        torch.testing.assert_close(half.loss, errors[half.mask == 1].mean())
        assert half.mask.sum(dim=1).tolist() == [4, 4]
        torch.testing.assert_close(half.embeddings[1].norm(dim=1), torch.ones(2))
    torch.testing.assert_close(learned.loss, learned.audio.loss + learned.video.loss + 0.3 * learned.inter + 0.2 * learned.intra)


def test_contrast_is_lowest_for_partners_that_agree() -> None:
    x = torch.eye(4)
    assert info_nce(x, x, 0.1).item() == pytest.approx(math.log(1 + 3 * math.exp(-10)), rel=1e-3)
    assert info_nce(x, x.roll(1, dims=0), 0.1) > 9
    torch.testing.assert_close(info_nce(x, x.flip(0), 1.0), info_nce(x.flip(0), x, 1.0))


def test_the_second_views_only_contrast() -> None:
    model, one = build_seeded(MAViLPretraining, PRETRAINING), noise()
    other = MaskNoise((one.audio[0], one.audio[1].flip(1)), (one.video[0], one.video[1].flip(1)))
    first, second = model(sound(), pictures(), one), model(sound(), pictures(), other)
    torch.testing.assert_close(first.audio.loss, second.audio.loss)
    torch.testing.assert_close(first.inter, second.inter)
    assert not torch.isclose(first.intra, second.intra)


def test_every_parameter_of_pre_training_learns() -> None:
    model = build_seeded(MAViLPretraining, PRETRAINING).train()
    model(sound(), pictures(), noise()).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad and not parameter.grad.any()] == []


def test_a_student_learns_from_a_teacher_and_becomes_one() -> None:
    teacher, student = (
        build_seeded(MAViLPretraining, PRETRAINING),
        build_seeded(MAViLPretraining, replace(PRETRAINING, predict_features=True)),
    )
    features = teacher.teacher_features(sound(), pictures())
    assert features.audio.shape == features.video.shape == (2, 8, 32)
    learned = student(sound(), pictures(), noise(), features)
    assert learned.audio.predicted.shape == (2, 8, 32)
    assert student.teacher_features(sound(), pictures()).audio.shape == (2, 8, 32)
    with pytest.raises(ValueError, match="stage 2"):
        student(sound(), pictures(), noise())
    with pytest.raises(ValueError, match="stage 2"):
        teacher(sound(), pictures(), noise(), features)


def test_fine_tuning_starts_from_pre_training() -> None:
    pretrained, model = build_seeded(MAViLPretraining, PRETRAINING), build_seeded(MAViL, FUSED)
    assert init_from_mavil_pretraining(model, pretrained.state_dict()) == ["blocks_av.2"]
    assert torch.equal(model.blocks_av[1].mlp.fc1.weight, pretrained.blocks_av[1].mlp.fc1.weight)
    assert torch.equal(model.video.patch_embed.proj.weight, pretrained.video.patch_embed.proj.weight)
    assert 1e-5 < model.head["av"].weight.std() < 3e-5
    with pytest.raises(ValueError, match=r"another shape: audio\.cls_token"):
        init_from_mavil_pretraining(MAViL(replace(FUSED, width=64)), pretrained.state_dict())


def test_pre_training_starts_from_an_mae_of_pictures() -> None:
    """A clip whose frames are all the same picture: the patch embedding is twice that of the picture, wherever its bias is 0."""
    mae = build_seeded(
        MAE, MAEConfig(image_size=16, patch_size=8, width=32, depth=2, heads=4, decoder_width=16, decoder_depth=1, decoder_heads=2)
    )
    model = build_seeded(MAViLPretraining, PRETRAINING)
    nn.init.zeros_(mae.patch_embed.proj.bias)
    video = video_weights_from_images(mae.state_dict(), PRETRAINING)
    weights = {**video, **audio_weights_from_video(video, PRETRAINING)}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert {name.split(".")[1] for name in missing} == {"decoder_pred"}
    still = torch.randn(1, 3, 16, 16)
    tokens = model.video.patch_embed(still.unsqueeze(2).repeat(1, 1, 4, 1, 1))
    torch.testing.assert_close(tokens, 2 * mae.patch_embed(still).repeat(1, 2, 1))
    assert torch.equal(model.video.pos_embed[:, 1:5], model.video.pos_embed[:, 5:])
    assert torch.equal(model.blocks_av[0].attn.qkv.weight, mae.blocks[1].attn.qkv.weight)
    assert torch.equal(model.blocks_av[1].attn.qkv.weight, mae.blocks[1].attn.qkv.weight)
    grey = torch.randn(1, 1, 32, 16)
    assert torch.equal(model.audio.pos_embed[:, 0], mae.pos_embed[:, 0])
    torch.testing.assert_close(
        model.audio.patch_embed(grey)[0, 0], 2 * mae.patch_embed(grey[:, :, :8, :8].repeat(1, 3, 2, 2))[0, 0], rtol=1e-4, atol=1e-5
    )


def test_rows_of_pictures_become_times_and_columns_mel_bins() -> None:
    """A table that holds the row and the column, in a picture of 4 × 4 patches that becomes 8 times and 2 mel bins."""
    config = replace(PRETRAINING, audio_frames=64, image_size=32)
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    places = torch.stack([rows, columns], dim=2).reshape(1, 16, 2)
    table = torch.cat([torch.full((1, 1, 2), 9.0), places, -places], dim=1)  # only the first of two times counts
    stretched = audio_weights_from_video({"video.pos_embed": table}, config)["audio.pos_embed"]
    assert torch.equal(stretched[:, 0], table[:, 0])
    times, bins = stretched[0, 1:].view(8, 2, 2).unbind(dim=2)
    torch.testing.assert_close(times, times[:, :1].expand(8, 2))
    torch.testing.assert_close(bins, bins[:1].expand(8, 2))
    torch.testing.assert_close(times[2:6, 0], torch.tensor([0.75, 1.25, 1.75, 2.25]), rtol=0, atol=0.1)
    assert (times[1:] > times[:-1]).all() and (bins[:, 1] > bins[:, 0]).all()


def published_sizes() -> Iterator[Any]:
    for name, content in published_keys("mavil").items():
        yield pytest.param(content["params"], id=name)


@pytest.mark.parametrize("shapes", list(published_sizes()))
def test_published_files_load_strictly_at_full_size(shapes: dict[str, list[int]]) -> None:
    detected_at_full_size(shapes)


def test_the_base_sizes_are_the_published_ones() -> None:
    with torch.device("meta"):
        pretraining, encoder = MAViLPretraining(MAViLPretrainingConfig()), MAViL(SIZES["mavil_base"])
    assert sum(parameter.numel() for parameter in pretraining.parameters()) == pytest.approx(239.5e6, rel=1e-3)
    assert sum(parameter.numel() for parameter in encoder.audio.parameters()) == pytest.approx(86e6, rel=0.01)


@pytest.mark.parametrize(
    ("case", "family", "settings"),
    [
        ("finetune_av", "mavil", {"mel_bins": 32, "heads": 4}),
        ("finetune_uni", "mavil", {"mel_bins": 32, "frames": 4, "heads": 5}),
        ("pretrain_stage1", "mavil_pretrained", {"mel_bins": 32, "frames": 4, "heads": 4}),
        ("pretrain_stage2", "mavil_pretrained", {"mel_bins": 32, "frames": 4, "heads": 3}),
        ("audio_mae_window_decoder", "audio_mae", {"mel_bins": 64, "heads": 4, "decoder_heads": 3}),
    ],
)
def test_a_checkpoint_survives_the_way_to_our_names_and_back(case: str, family: str, settings: dict[str, int]) -> None:
    published = read_checkpoint(GOLDEN / case / "checkpoint.pth")
    found = fit(published, families()[family], settings)
    assert found.perfect
    exported = families()[family].export(found.weights)
    assert exported.keys() == published.keys()
    assert all(torch.equal(exported[key], value) for key, value in published.items())
    again = fit(exported, families()[family], settings)
    assert all(torch.equal(again.weights[key], value) for key, value in found.weights.items())


def test_a_file_that_lacks_a_head_says_so() -> None:
    published = read_checkpoint(GOLDEN / "finetune_av" / "checkpoint.pth")
    del published["head_av.bias"]
    published["stranger.weight"] = torch.zeros(1)
    found = fit(published, families()["mavil"], {"mel_bins": 32})
    assert (found.missing, found.unexpected) == (["head_av.bias"], ["stranger.weight"])
    assert "cannot classify before they are fine-tuned" in found.mismatch_message()


def test_classifier_with_decoders_is_imported_without_them(tmp_path: Path) -> None:
    published = read_checkpoint(GOLDEN / "finetune_av" / "checkpoint.pth")
    rest = {key: torch.zeros(1) for key in ("decoder_blocks.0.norm1.bias", "decoder_blocks.1.norm1.bias", "mask_token_v", "norm.weight")}
    torch.save({"model": {**published, **rest}, "optimizer": {"state": {}}, "epoch": 3}, tmp_path / "file.pth")
    spec, weights = import_checkpoint(
        tmp_path / "file.pth",
        family=None,
        labels=None,
        overrides={"heads": "4", "mel_bins": "32"},
        name="both",
        version="1",
        license="none",
    )
    assert spec.provenance["left_out"] == ["decoder_blocks.{i}.norm1.bias", "mask_token_v", "norm.weight"]
    assert families()["mavil"].export(weights).keys() == published.keys()


@pytest.mark.parametrize("name", ["pretrain_stage1", "pretrain_stage2"])
def test_fine_tuning_starts_from_a_file_of_either_stage(name: str) -> None:
    """The fusion blocks of the file, and one more; what enters that one is what the pre-trained model makes of sound and pictures."""
    case = read_case(GOLDEN / name)
    pretrained = load_pretraining(case, case.checkpoint, student=True)
    sizes = {field: value for field, value in vars(pretrained.config).items() if field in TowersConfig.__dataclass_fields__}
    model = MAViL(MAViLConfig(**sizes | {"fusion_depth": 3, "classes": 5})).eval()
    assert init_from_mavil_pretraining(model, pretrained.state_dict()) == ["blocks_av.2"]
    audio, video = case.inputs["audio"], case.inputs["video"]
    features = pretrained.teacher_features(audio, video)
    audible, seen = fuse(model.blocks_av[:2], model.audio.run(model.embed_audio(audio)), model.video.run(model.embed_video(video)))
    torch.testing.assert_close(pretrained.audio.norm(audible.x[:, 1:]), features.audio)
    torch.testing.assert_close(pretrained.video.norm(seen.x[:, 1:]), features.video)


@pytest.mark.parametrize("name", ["finetune_av", "finetune_uni"])
def test_bfloat16_is_within_three_percent_of_recorded_scores(name: str) -> None:
    case = read_case(GOLDEN / name)
    model = load_finetuned(case).to(torch.bfloat16)
    audio, video = case.inputs["audio"].bfloat16(), case.inputs["video"].bfloat16()
    with torch.inference_mode():
        answers = (
            {"av": model(audio, video)}
            if name == "finetune_av"
            else {"audio": model.forward_audio(audio), "video": model.forward_video(video)}
        )
    for selected, answer in answers.items():
        recorded = case.outputs[f"logits_{selected}"]
        assert (answer.logits.float() - recorded).norm() < 0.03 * recorded.norm()


@pytest.mark.parametrize("name", ["pretrain_stage1", "pretrain_stage2"])
def test_pre_training_runs_in_bfloat16(name: str) -> None:
    case = read_case(GOLDEN / name)
    audio, video = case.inputs["audio"].bfloat16(), case.inputs["video"].bfloat16()
    model = load_pretraining(case, case.checkpoint, student=True).to(torch.bfloat16)
    with torch.inference_mode():
        features = None
        if model.config.predict_features:
            features = load_pretraining(case, case.folder / "teacher.pth", student=False).to(torch.bfloat16).teacher_features(audio, video)
        learned = model(audio, video, noise_of(case), features)
    for name, half in (("audio", learned.audio), ("video", learned.video)):
        recorded = case.outputs[f"pred_{name}"]
        assert (half.predicted.float() - recorded).norm() < 0.03 * recorded.norm()
    assert learned.loss.float().item() == pytest.approx(case.outputs["loss_total"].item(), rel=0.03)


def test_masks_take_and_put_back() -> None:
    masking = Masking.from_noise(torch.rand(2, 6), 2)
    filled = masking.unshuffle(torch.ones(2, 2, 3), torch.zeros(1, 1, 3))
    assert torch.equal(filled[..., 0], 1 - masking.mask)


def test_widths_that_sines_do_not_fill_have_a_table_too() -> None:
    model = MAViL(replace(FUSED, width=30, heads=3))
    assert model.audio.pos_embed.shape == (1, 9, 30)
    assert torch.equal(model.audio.pos_embed[..., :28], MAViL(replace(FUSED, width=28)).audio.pos_embed)
    assert not model.audio.pos_embed[..., 28:].any()
