"""Losses and gradients of recorded training steps, through the objectives that train."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.checkpoints.checkpoint_file import read_checkpoint
from models.people.track_batch import TrackBatch
from models.systems.diffmae.masks import PatchSplit
from models.systems.image_text.dual_encoder import unit_vectors
from models.systems.mae.model import MAE, MAEConfig
from models.systems.mcc.model import DropPathMasks
from models.systems.mcc.queries import label_queries
from models.systems.mcc.scene_inputs import SceneAugmentation
from tests.golden.case import Case, read_case
from tests.golden.replays import cit as replay_cit
from tests.golden.replays import diffmae as replay_diffmae
from tests.golden.replays import flip as replay_flip
from tests.golden.replays import lart as replay_lart
from tests.golden.replays import mae as replay_mae
from tests.golden.replays import mae_st as replay_mae_st
from tests.golden.replays import mavil as replay_mavil
from tests.golden.replays import mcc as replay_mcc
from tests.training.objectives.cases import gradients
from training.objectives.contrastive import ContrastiveObjective, ContrastiveSettings, contrast
from training.objectives.diffmae import DiffMAEDraw, DiffMAEObjective, DiffMAESettings
from training.objectives.lart import LARTObjective, LARTSettings
from training.objectives.mae import MAEObjective
from training.objectives.mavil import MAViLPretrainingObjective
from training.objectives.mcc import MCCObjective, MCCSettings

GOLDEN = Path(__file__).parents[2] / "golden"


def load_recording(name: str) -> Case:
    return read_case(GOLDEN / name)


def check(case: Case, name: str, got: Tensor) -> None:
    tolerance = case.tolerance_of(name)
    expected = case.outputs[name].reshape(got.shape)
    torch.testing.assert_close(got.detach(), expected, rtol=tolerance.rtol, atol=tolerance.atol, check_dtype=False)


@pytest.mark.parametrize("name", ["mae/pretrain_normpix", "mae/pretrain_pixel"])
def test_mae(name: str) -> None:
    case = load_recording(name)
    model = MAE(MAEConfig(**replay_mae.settings(case.config)))
    model.load_state_dict(read_checkpoint(case.checkpoint))
    check(case, "loss", MAEObjective(model).losses(case.inputs["img"], case.inputs["noise"])["loss"])


@pytest.mark.parametrize("name", ["mae_st/pretrain_sep_cls", "mae_st/pretrain_joint_nocls"])
def test_mae_on_clips(name: str) -> None:
    case = load_recording(name)
    objective = MAEObjective(replay_mae_st.load_pretraining(case))
    assert objective.input == "clip"
    check(case, "loss", objective.losses(case.inputs["video"], case.inputs["noise"])["loss"])


def test_audio_mae() -> None:
    case = load_recording("mavil/audio_mae_window_decoder")
    objective = MAEObjective(replay_mavil.load_audio_mae(case)).eval()
    check(case, "loss_rec_audio", objective.losses(case.inputs["audio"], case.inputs["noise"])["loss"])


@pytest.mark.parametrize("name", ["diffmae/train_cross_self", "diffmae/train_video_cross"])
def test_diffmae(name: str) -> None:
    case = load_recording(name)
    objective = DiffMAEObjective(replay_diffmae.load(case), DiffMAESettings())
    split = PatchSplit.from_noise(case.inputs["mask_noise"], case.recorded["mask_ratio"])
    loss = objective.losses(case.inputs["image"], DiffMAEDraw(split, case.inputs["t"], case.inputs["eps"]))["loss"]
    check(case, "loss", loss)
    names = [name.removeprefix("grad.") for name in case.outputs if name.startswith("grad.")]
    assert names
    for name, gradient in zip(names, torch.autograd.grad(loss, [objective.model.get_parameter(name) for name in names]), strict=True):
        check(case, f"grad.{name}", gradient)


@pytest.mark.parametrize("name", ["flip/tiny_m50_t5x", "flip/tiny_m75"])
def test_flip(name: str) -> None:
    case = load_recording(name)
    images, words = case.inputs["image_nhwc"].permute(0, 3, 1, 2), case.inputs["txt"].long()
    model = replay_flip.load(case)
    masked = ContrastiveObjective(model, ContrastiveSettings()).losses(images, words, case.inputs["mask_noise"])
    check(case, "train_loss", masked["loss"])
    check(case, "eval_loss", ContrastiveObjective(model, ContrastiveSettings(masked=False)).losses(images, words)["loss"])


@pytest.mark.parametrize("name", ["cit/moco_tiny", "cit/augreg_tiny"])
def test_cit(name: str) -> None:
    case = load_recording(name)
    features = (unit_vectors(case.outputs["image_embeds"]), unit_vectors(case.outputs["text_embeds"]))
    scale = replay_cit.load(case).scale()
    check(case, "loss_i2t", contrast(*features, scale, symmetric=False)["loss"])
    check(case, "loss_symmetric", contrast(*features, scale)["loss"])


@pytest.mark.parametrize("stage", [1, 2])
def test_mavil(stage: int) -> None:
    case = load_recording(f"mavil/pretrain_stage{stage}")
    teacher = replay_mavil.load_pretraining(case, case.folder / "teacher.pth", student=False) if stage == 2 else None
    objective = MAViLPretrainingObjective(replay_mavil.load_pretraining(case, case.checkpoint, student=True), teacher)
    values = objective.losses(case.inputs["audio"], case.inputs["video"], replay_mavil.noise_of(case))
    recorded_as = {"loss": "total", "loss_audio": "rec_audio", "loss_video": "rec_video", "loss_inter": "inter", "loss_intra": "intra"}
    for name, theirs in recorded_as.items():
        check(case, f"loss_{theirs}", values[name])


def test_lart() -> None:
    case = load_recording("lart/train_masking")
    inputs = case.inputs
    tracks = TrackBatch(
        inputs["pose_shape"], inputs["has_detection"], inputs.get("joints_3D"), inputs.get("apperance_emb"), inputs.get("mask_detection")
    )
    objective = LARTObjective(replay_lart.build(case), LARTSettings()).eval()
    targets = {"actions": inputs["action_label"], "labelled": inputs["has_gt"]}
    check(case, "loss_action", objective.losses(tracks, replay_lart._recorded_masks(case, tracks), targets)["loss"])


def test_mcc() -> None:
    case = load_recording("mcc/co3d_train_step")
    inputs = case.inputs
    model, images, seen, queries = replay_mcc.scene_of(case)
    augmentation = SceneAugmentation(inputs["aug_scale"], inputs["aug_shift"], inputs["aug_degrees_xyz"], bool(inputs["aug_flip"]))
    labels = label_queries(queries, inputs["gt_xyz"], inputs["gt_rgb"], case.config["train_dist_threshold"])
    retained = DropPathMasks(inputs["drop_keep_xyz"], inputs["drop_keep_rgb"], inputs["drop_keep_decoder"])
    objective = MCCObjective(model, MCCSettings()).train()
    values = objective.losses(images, seen, queries, labels, augmentation, retained)
    check(case, "loss", values["loss"])
    check(case, "loss_occupancy", values["loss_occupancy"])
    check(case, "loss_rgb", values["loss_colour"])
    found = gradients(values["loss"], objective.model)
    names = [name for name in case.outputs if name.startswith("grad.")]
    assert names
    for name in names:
        check(case, name, found[name.removeprefix("grad.")])
