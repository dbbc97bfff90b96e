"""LART's replay follows what a case says of itself, also where it says more, or less, than the recorded ones."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.people.track_batch import TrackBatch, normalise_pose
from tests.golden.__main__ import HERE, run
from tests.golden.case import read_case, read_recording, write_recording
from tests.golden.replays.lart import build

CASES = HERE / "lart"


def variant(tmp_path: Path, case: str, content: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """Copy a case with another description and other values."""
    folder = tmp_path / case
    shutil.copytree(CASES / case, folder)
    write_recording(folder, content, tensors)
    return folder


def read(case: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return read_recording(CASES / case)


def test_published_values_are_defaults_and_notes_no_expectations(tmp_path: Path) -> None:
    content, tensors = read("train_masking")
    del content["config"]["mask_ratio"], content["config"]["ava"], content["config"]["transformer"]["conv"]
    content |= {"seed": 7, "torch": "2.0"}
    assert run(variant(tmp_path, "train_masking", content, tensors))


@pytest.mark.parametrize(("ground_truth", "value"), [("gt", 2), ("pseduo_gt", 1)])
def test_the_loss_counts_the_chosen_labels(tmp_path: Path, ground_truth: str, value: int) -> None:
    content, tensors = read("train_masking")
    chosen = ((tensors["in.has_detection"] == 1) & (tensors["in.has_gt"] == value)).squeeze(-1)
    assert chosen.any()
    logits, labels = tensors["out.action_logits"][chosen].sigmoid(), tensors["in.action_label"][chosen]
    tensors["out.loss_action"] = 10 * -(labels * logits.log() + (1 - labels) * (1 - logits).log()).mean()
    content["config"]["ava"]["gt_type"] = ground_truth
    assert run(variant(tmp_path, "train_masking", content, tensors))


def test_a_whole_track_of_poses_alone_needs_no_joints(tmp_path: Path) -> None:
    """The track is so short that it is one window."""
    content, _ = read("pose_only")
    del content["config"]["mode"]
    content["config"] |= {"step": 4, "window": 3}
    mean_std = torch.stack([torch.full((1, 226), 0.5), torch.full((1, 226), 2.0)])
    pose, detected = torch.randn(4, 1, 229, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 0, 1, 1]).view(4, 1, 1)
    padded = [torch.cat([values, values.new_zeros(10, *values.shape[1:])]) for values in (normalise_pose(pose, mean_std), detected)]
    with torch.no_grad():
        reading = build(read_case(CASES / "pose_only"))(TrackBatch(padded[0].unsqueeze(0), padded[1].unsqueeze(0))).reading
    tensors = {"in.pose_shape": pose, "in.has_detection": detected, "in.mean_std": mean_std}
    tensors |= {"out.action_logits": reading.actions[0, :4].contiguous(), "out.camera": reading.location[0, :4].contiguous()}
    assert run(variant(tmp_path, "pose_only", content, tensors))
