"""Pipelines for tests: the shipped MoveNet and a small LART with random weights."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch

from models.bundle import Bundle, BundleSpec, member, read
from models.bundle_schema import Clip, Member
from models.people.heads import Feature
from models.people.keypoints import TOKEN
from models.systems.lart.model import LART, LARTConfig
from tests.harness.bundles import UNSEALED, sealed

MOVENET = Path(__file__).parents[2] / "bundles" / "movenet" / "1.0.0"
LABELS = ["stand", "walk", "wave", "jump"]
SMALL = LARTConfig(
    frames=45,
    pose=Feature(TOKEN, 32, 32),
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
    return sealed(root, spec, model.state_dict())


def write_movenet(root: Path) -> Bundle:
    target = root / "movenet" / "1.0.0"
    shutil.copytree(MOVENET, target)
    return read(target)


def write_pipeline(root: Path, members: dict[Any, Bundle], name: str = "watcher", rate: float = 15.0, **more: Any) -> Bundle:
    roles: dict[Any, Member] = {role: member(bundle) for role, bundle in members.items()}
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
        **{"config": {"step": 16, "margin": 14}, **more},
    )
    return sealed(root, spec, {})


def write_watcher(root: Path, **more: Any) -> Bundle:
    """MoveNet and a small LART."""
    return write_pipeline(root, {"pose": write_movenet(root), "actions": write_lart(root)}, **more)
