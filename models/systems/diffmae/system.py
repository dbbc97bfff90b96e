"""DiffMAE, and its presets of sampling, which users ask for by name. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from models.bundle_schema import Clip
from models.registry import Architecture, BundleDefaults, DummyForward, SizeTable, System

SamplerName = Literal["ddim", "ancestral", "one-step"]
"""Values of `diffusion.Method`."""
SpacingName = Literal["uniform", "logsnr"]
"""Values of `diffusion.Spacing`."""
PresetName = Literal["draft", "fast", "standard", "full"]


@dataclass(frozen=True)
class SamplerPreset:
    sampler: SamplerName
    steps: int


PRESETS: Mapping[PresetName, SamplerPreset] = {
    "draft": SamplerPreset("one-step", 1),
    "fast": SamplerPreset("ddim", 10),
    "standard": SamplerPreset("ddim", 100),
    "full": SamplerPreset("ancestral", 1000),
}


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
                clip=lambda config: Clip.like_slowfast(config.frames) if config.frames else None,
            ),
            steps={"inpaint": "models.systems.diffmae.steps:inpaint_steps"},
            precise_tasks=frozenset({"inpaint"}),
            dummy_forward=DummyForward(
                "sample", lambda config: int(config.patches * (1 - MASKED)) + 1, "models.systems.diffmae.sampling:one_step"
            ),
        ),
    ),
    sizes=(SizeTable("DiffMAE", "diffmae", "arXiv 2304.03283", "models.systems.diffmae.model:SIZES"),),
    families={"diffmae": "models.systems.diffmae.checkpoint:FAMILY"},
)
