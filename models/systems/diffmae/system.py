"""DiffMAE. Imports no torch."""

from __future__ import annotations

from models.media.clip_strides import slowfast_clip
from models.registry import Architecture, BundleDefaults, DummyForward, SizeTable, System

MASKED = 0.75
"""Share of the patches that are to be filled at the native size."""

SYSTEM = System(
    architectures=(
        Architecture(
            name="diffmae",
            model="models.systems.diffmae.model:DiffMAE",
            bundle_defaults=BundleDefaults(
                task=lambda config: "inpaint",
                size=lambda config: config.image_size,
                clip=lambda config: slowfast_clip(config) if config.frames else None,
            ),
            steps={"inpaint": "models.systems.diffmae.steps:inpaint_steps"},
            precise_tasks=frozenset({"inpaint"}),
            dummy_forward=DummyForward(
                "sample", lambda config: int(config.patches * (1 - MASKED)) + 1, "models.systems.diffmae.dummy_inputs:one_step"
            ),
        ),
    ),
    sizes=(SizeTable("DiffMAE", "diffmae", "arXiv 2304.03283", "models.systems.diffmae.model:SIZES"),),
    families={"diffmae": "models.systems.diffmae.checkpoint:FAMILY"},
)
