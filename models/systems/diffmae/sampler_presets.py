"""Presets of sampling, which users ask for by name. Imports no torch: a gateway reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

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
