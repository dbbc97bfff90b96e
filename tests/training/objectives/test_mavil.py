"""MAViL: reconstruction and contrasts written out, the teacher of stage 2, and fine-tuning."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models import bundle
from models.bundle import BundleSpec
from models.bundle_schema import FileDigest, Preprocess
from models.systems.mavil.audio_mae import AudioMAE, AudioMAEConfig
from models.systems.mavil.model import MAViL, MAViLConfig, init_from_mavil_pretraining
from models.systems.mavil.pretraining import MaskNoise, MAViLPretraining
from models.systems.mavil.system import clip_at_2_fps, spectrogram_section
from tests.training.objectives.cases import MAVIL_CONFIG, TOWERS, assert_same_gradients, draw, gradients, make, normal, uniform
from tests.training.objectives.test_contrastive import written_out as partners
from training import random_draws
from training.objectives.mavil import AudioVisualSettings, MAViLFinetuneObjective, MAViLPretrainingObjective, MAViLSettings
from training.objectives.protocols import ObjectiveContext
from training.recipe_settings import OptimiserSettings


def noise() -> MaskNoise:
    views = {
        name: tuple(random_draws.uniform(draw(), (patches,), f"{name} mask {view}") for view in (1, 2))
        for name, patches in (("audio", MAVIL_CONFIG.audio_patches), ("video", MAVIL_CONFIG.video_patches))
    }
    return MaskNoise(views["audio"], views["video"])  # type: ignore[arg-type]


def symmetric(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    forth, back = partners(x, y, 1 / temperature)
    return (forth + back) / 2


def remove(errors: Tensor, mask: Tensor) -> Tensor:
    """Mean over the removed patches, one by one."""
    return torch.stack([errors[sample, patch] for sample, patch in mask.nonzero().tolist()]).mean()


@pytest.mark.parametrize("name", ["mavil", "mavil_taught"])
def test_the_loss_adds_what_is_rebuilt_and_what_is_found(name: str) -> None:
    objective, batch = make(name)
    assert isinstance(objective, MAViLPretrainingObjective)
    model, sound, clip = objective.model, batch["spectrogram"], batch["clip"]
    features = None if objective.teacher is None else objective.teacher.teacher_features(sound, clip)
    learned = model(sound, clip, noise(), features)
    if features is None:
        tiles = sound.view(4, 4, 8, 2, 8).permute(0, 1, 3, 2, 4).reshape(4, 8, 64)  # times, mel bins | time, bin
        tubes = clip.view(4, 3, 2, 2, 8, 2, 8).permute(0, 2, 3, 5, 4, 6, 1).reshape(4, 8, 192)  # time, row, column | row, column, colour
        targets = [(patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt() for patches in (tiles, tubes)]
    else:
        targets = [features.audio, features.video]
    halves = (learned.audio, learned.video)
    rebuilt = [remove((half.predicted - target).square().mean(-1), half.mask) for half, target in zip(halves, targets, strict=True)]
    inter = symmetric(learned.audio.embeddings[0], learned.video.embeddings[0], 0.1)
    intra = (symmetric(*learned.audio.embeddings, 1.0) + symmetric(*learned.video.embeddings, 1.0)) / 2
    expected = rebuilt[0] + rebuilt[1] + 0.1 * inter + 0.01 * intra
    values = objective(batch)
    assert values["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert values["loss_inter"].item() == pytest.approx(inter.item(), rel=1e-5)
    assert_same_gradients(gradients(values["loss"], objective), gradients(expected, objective), 2e-5)


def test_both_views_of_both_kinds_hide_other_patches() -> None:
    views = noise()
    seen = [tuple(view[0].argsort()[:4].tolist()) for view in (*views.audio, *views.video)]
    assert len(set(seen)) == 4


def test_a_teacher_is_frozen_and_needed_in_stage_two_alone() -> None:
    objective, _ = make("mavil_taught")
    assert isinstance(objective, MAViLPretrainingObjective) and objective.teacher is not None
    assert not objective.train().teacher.training  # type: ignore[union-attr]
    assert not any(parameter.requires_grad for parameter in objective.teacher.parameters())
    with pytest.raises(ValueError, match="teacher"):
        MAViLPretrainingObjective(MAViLPretraining(MAVIL_CONFIG), MAViLPretraining(MAVIL_CONFIG))
    with pytest.raises(ValueError, match="teacher"):
        MAViLSettings().build(MAViLPretraining(replace(MAVIL_CONFIG, predict_features=True)), ObjectiveContext())


def test_the_model_of_stage_one_teaches_from_its_bundle(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = MAViLPretraining(MAVIL_CONFIG)
    save_file(first.state_dict(), tmp_path / "weights.safetensors")
    spec = BundleSpec(
        name="first",
        version="1",
        task="autoencode",
        architecture="mavil_pretraining",
        config=asdict(first.config),
        preprocess=Preprocess(image_size=16, short_side=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        clip=clip_at_2_fps(first.config),
        sound=spectrogram_section(first.config),
        labels=[],
        license="none",
        weights=FileDigest(sha256="0" * 64, bytes=0),
    )
    path = bundle.write(tmp_path / "bundles", spec, tmp_path / "weights.safetensors").path
    sound, clip = normal(1, 32, 16), normal(3, 2, 16, 16)
    for teacher in (path, tmp_path / "weights.safetensors"):  # or from the weights that a phase has left
        student = MAViLPretraining(replace(MAVIL_CONFIG, predict_features=True))
        objective = MAViLSettings(teacher=teacher).build(student, ObjectiveContext())
        assert objective.teacher is not None
        torch.testing.assert_close(objective.teacher.teacher_features(sound, clip).video, first.teacher_features(sound, clip).video)


def test_student_teaches_next_round_and_others_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = replace(MAVIL_CONFIG, predict_features=True)
    student = MAViLPretraining(config)
    save_file(student.state_dict(), tmp_path / "round.safetensors")
    objective = MAViLSettings(teacher=tmp_path / "round.safetensors").build(MAViLPretraining(config), ObjectiveContext())
    sound, clip = normal(1, 32, 16), normal(3, 2, 16, 16)
    assert objective.teacher is not None
    torch.testing.assert_close(objective.teacher.teacher_features(sound, clip).audio, student.teacher_features(sound, clip).audio)
    with pytest.raises(ValueError, match=r"objective.teacher: .*round.safetensors has no weights of the student's size: .*cls_token"):
        MAViLSettings(teacher=tmp_path / "round.safetensors").build(MAViLPretraining(replace(config, width=32)), ObjectiveContext())
    with pytest.raises(ValueError, match=r"objective.teacher: .*nowhere.safetensors cannot be read"):
        MAViLSettings(teacher=tmp_path / "nowhere.safetensors").build(MAViLPretraining(config), ObjectiveContext())


def test_fine_tuning_masks_whole_times_and_bins() -> None:
    objective, batch = make("audio_visual")
    assert isinstance(objective, MAViLFinetuneObjective)
    times, bins = (random_draws.uniform(draw(), (count,), name) for count, name in ((4, "times"), (2, "mel bins")))
    audible = torch.stack(
        [
            torch.tensor([2 * time + mel for time in times[sample].argsort()[:2].tolist() for mel in bins[sample].argsort()[:1].tolist()])
            for sample in range(4)
        ]
    )
    seen = random_draws.uniform(draw(), (8,), "video").argsort(dim=1)[:, :5]
    scores = objective.model(batch["spectrogram"], batch["clip"], audio_ids_keep=audible, video_ids_keep=seen).logits.sigmoid()
    expected = -torch.where(batch["labels"] == 1, scores, 1 - scores).log().mean()
    loss = objective(batch)["loss"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(gradients(loss, objective), gradients(expected, objective), 2e-5)


def test_halves_without_fusion_learn_separately() -> None:
    torch.manual_seed(0)
    model = MAViL(MAViLConfig(**{**TOWERS, "fusion_depth": 0}, classes=3, multi_label=False))  # type: ignore[arg-type]
    objective = MAViLFinetuneObjective(model, AudioVisualSettings(time_mask=0.0, mel_mask=0.0, label_smoothing=0.3))
    label = torch.tensor([0, 2, 1, 1])
    sound, clip = normal(1, 32, 16), normal(3, 2, 16, 16)
    loss = objective({"spectrogram": sound, "clip": clip, "label": label, "draw": draw()})["loss"]
    targets = torch.full((4, 3), 0.1).scatter(1, label.unsqueeze(1), 0.8)
    expected = sum(
        -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
        for logits in (model.forward_audio(sound).logits, model.forward_video(clip).logits)
    )
    assert isinstance(expected, Tensor) and loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert len(gradients(loss, objective)) == sum(parameter.requires_grad for parameter in model.parameters())


def test_audio_only_half_starts_from_audio_mae_without_clips() -> None:
    torch.manual_seed(0)
    sizes = {"audio_frames": 32, "mel_bins": 16, "width": 16, "depth": 2, "heads": 2}
    pretrained = AudioMAE(AudioMAEConfig(**sizes, patch_size=8, decoder_width=16, decoder_depth=1, decoder_heads=2, window=None))  # type: ignore[arg-type]
    model = MAViL(MAViLConfig(**sizes, audio_patch_size=8, fusion_depth=0, sees=False, classes=3, multi_label=False))  # type: ignore[arg-type]
    init_from_mavil_pretraining(model, pretrained.state_dict())
    assert {name.split(".")[0] for name in model.state_dict()} == {"audio", "fc_norm", "head"}
    torch.testing.assert_close(model.audio.blocks[1].attn.qkv.weight, pretrained.blocks[1].attn.qkv.weight)
    objective, sound = MAViLFinetuneObjective(model, AudioVisualSettings(time_mask=0.0, mel_mask=0.0)), normal(1, 32, 16)
    answer = objective({"spectrogram": sound, "label": torch.tensor([0, 2, 1, 1]), "draw": draw()})
    logits = model.forward_audio(sound).logits
    assert answer["loss"].item() == pytest.approx(torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2, 1, 1])).item(), rel=1e-5)
    assert answer["accuracy"].item() == (logits.argmax(dim=1) == torch.tensor([0, 2, 1, 1])).float().mean().item()
    with pytest.raises(ValueError, match="no video half"):
        model.forward_video(normal(3, 2, 16, 16))
    with pytest.raises(ValueError, match="fusion_depth"):
        MAViLConfig(sees=False)


def test_layers_decay_as_published() -> None:
    objective, _ = make("audio_visual")
    assert isinstance(objective, MAViLFinetuneObjective)
    groups = objective.parameter_groups(OptimiserSettings(lr=1, weight_decay=5e-4, layer_decay=0.75))
    scale = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert scale["audio.blocks.0.attn.qkv.weight"] == scale["blocks_av.0.attn.qkv.weight"] == 0.75
    assert scale["video.cls_token"] == 0.75**2 and scale["head.av.weight"] == 1.0
    assert uniform(1).shape == (4, 1)
