"""A member of a pipeline, as the pipeline's network gets it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from models.bundle import BundleSpec


@dataclass(frozen=True)
class LoadedMember:
    spec: BundleSpec
    model: nn.Module
    """Loaded, on the pipeline's device, in evaluation mode."""
