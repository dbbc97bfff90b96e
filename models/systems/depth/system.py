"""Depth estimation from one image of one object, by a network of this project. Imports no torch."""

from __future__ import annotations

from models.registry import Architecture, BundleDefaults, DummyForward, System

SYSTEM = System(
    architectures=(
        Architecture(
            name="lite_depth",
            model="models.systems.depth.model:LiteDepth",
            bundle_defaults=BundleDefaults(task=lambda config: "depth"),
            dummy_forward=DummyForward("image", lambda config: 0, "models.systems.depth.model:image"),
            merges=False,
        ),
    ),
)
