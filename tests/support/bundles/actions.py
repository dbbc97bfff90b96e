"""Action pipelines: the shipped MoveNet or small members in LART's published layout, with random weights."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.bundle import Bundle, BundleSpec, member_reference, read
from models.bundle_schema import Clip, MemberReference, Preprocess
from models.checkpoints import read_checkpoint
from models.people.heads import TrackFeatureDims
from models.people.keypoints import TOKEN_VALUES
from models.people.smpl import CHECKPOINT_PREFIX
from models.people.track_batch import POSE_VALUES
from models.systems.lart.model import LART, LARTConfig
from models.systems.mvit.model import Activation, BoxPooling, MViT, MViTConfig
from tests.golden.case import GOLDEN
from tests.support.bundles.vit import UNSEALED, seal

MOVENET = Path(__file__).parents[3] / "bundles" / "movenet" / "1.0.0"
LABELS = ["stand", "walk", "wave", "jump"]
SMALL = LARTConfig(
    frames=45,
    pose=TrackFeatureDims(TOKEN_VALUES, 32, 32),
    joints=None,
    appearance=None,
    depth=2,
    heads=2,
    head_dim=16,
    hidden=32,
    actions=len(LABELS),
    kinetics_classes=2,
    regressor_hidden=8,
)


def write_lart(root: Path, config: LARTConfig = SMALL, name: str = "small-lart", labels: list[str] = LABELS) -> Bundle:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LART(config)
    spec = BundleSpec(
        name=name,
        version="1",
        task="actions",
        architecture="lart",
        config=dataclasses.asdict(config),
        labels=labels,
        license="CC0-1.0",
        weights=UNSEALED,
    )
    return seal(root, spec, model.state_dict())


def write_movenet(root: Path) -> Bundle:
    target = root / "movenet" / "1.0.0"
    shutil.copytree(MOVENET, target)
    return read(target)


def write_pipeline(root: Path, members: dict[Any, Bundle], name: str = "watcher", rate: float = 15.0, **extra: Any) -> Bundle:
    roles: dict[Any, MemberReference] = {role: member_reference(bundle) for role, bundle in members.items()}
    spec = BundleSpec(
        name=name,
        version="1",
        task="actions",
        architecture="actions",
        clip=Clip(frames=8, stride=1, rate=rate),
        labels=members["actions"].spec.labels,
        license="CC0-1.0",
        members=roles,
        weights=UNSEALED,
        **{"config": {"step": 16, "margin": 14}, **extra},
    )
    return seal(root, spec, {})


def write_watcher(root: Path, **extra: Any) -> Bundle:
    """MoveNet and a small LART."""
    return write_pipeline(root, {"pose": write_movenet(root), "actions": write_lart(root)}, **extra)


STRIDE = 3
SMALL_MVIT = MViTConfig(
    image_size=32,
    frames=4,
    classes=80,
    width=8,
    depth=3,
    width_growth=((1, 2.0), (2, 2.0)),
    head_growth=((1, 2.0), (2, 2.0)),
    q_strides=((0, 1, 1, 1), (1, 1, 2, 2), (2, 1, 2, 2)),
    kv_stride=(1, 4, 4),
    activation=Activation.SIGMOID,
    boxes=BoxPooling(),
)
APPEARANCE = 32
"""Values of its features."""
COLOURS = Preprocess(image_size=32, short_side=32, mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225))
STATISTICS = (tuple(np.linspace(-0.5, 0.5, 226).tolist()), tuple(np.linspace(0.5, 1.5, 226).tolist()))
LAYOUT: LARTConfig = dataclasses.replace(
    SMALL,
    pose=TrackFeatureDims(POSE_VALUES, 32, 32),
    joints=TrackFeatureDims(135, 16, 16),
    appearance=TrackFeatureDims(APPEARANCE, 16, 16),
    mean_std=STATISTICS,
)
"""Pose, joints and appearance, as published."""


def small_mvit(config: MViTConfig = SMALL_MVIT) -> MViT:
    """Build a model whose features differ from clip to clip."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = MViT(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1) * 0.5, std=0.2)
    return model.eval().requires_grad_(False)


def write_mvit(root: Path, config: MViTConfig = SMALL_MVIT, name: str = "small-mvit") -> Bundle:
    spec = BundleSpec(
        name=name,
        version="1",
        task="actions",
        architecture="mvit",
        config=dataclasses.asdict(config),
        preprocess=COLOURS,
        clip=Clip(frames=config.frames, stride=STRIDE),
        labels=[f"class {index}" for index in range(config.classes)],
        license="CC0-1.0",
        weights=UNSEALED,
    )
    return seal(root, spec, small_mvit(config).state_dict())


def mesh() -> dict[str, Tensor]:
    """Return the made-up mesh of 40 vertices that a recorded checkpoint of HMR2 holds."""
    weights = read_checkpoint(GOLDEN / "hmr2" / "tiny_forward" / "checkpoint.pth")
    return {
        name.removeprefix(CHECKPOINT_PREFIX): value.contiguous() for name, value in weights.items() if name.startswith(CHECKPOINT_PREFIX)
    }


def write_mesh(file: Path) -> Path:
    """Write a mesh as .npz or .safetensors, by the file's suffix."""
    if file.suffix == ".npz":
        np.savez(file, **{name: value.numpy() for name, value in mesh().items()})  # type: ignore[arg-type]
    else:
        save_file(mesh(), file)
    return file
