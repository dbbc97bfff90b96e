"""Settings of the evaluation of reconstructions."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from starters.evaluation.starter_quality import StarterQuality
from training.evaluation.trained_classifier import SplitQuality


class ReconstructionSettings(StarterQuality, SplitQuality):
    """F1 of reconstructed surfaces of held-out objects, and the error of hidden colours.

    Baselines need no network, use parts of the network alone, or are the network without these parts."""

    kind: Literal["reconstruction"] = "reconstruction"
    phases: ClassVar = ("ablation",)
    ablation: str
    """Phase that trained the network without geometric features of queries, for as long."""
    primary: list[str] = Field(min_length=1)
    """Test categories of the primary figure; others are reported separately, for continuity."""
    f1: float = Field(gt=0, lt=1)
    """Target of the primary figure."""
    above: float = Field(gt=0, lt=1)
    """Target of its difference from the extruded points."""
    views: int = Field(default=2, gt=0)
    """Maximum number of views of each object."""
    validation_views: int = Field(default=1, gt=0)
    """Maximum number of views of each validation object."""
    distance: float = Field(default=0.1, gt=0)
    """Maximum distance of matching points of two surfaces, in normalised units."""
    spacing: float = Field(default=0.1, gt=0)
    """Spacing of the grid of queries."""
    threshold: float = Field(default=0.1, gt=0, lt=1)
    """Default threshold of occupancy of the service, to which the best one on validation objects is shifted."""
    depths: list[float] = Field(default=[0.25, 0.5, 1.0, 1.5, 2.0, 3.0], min_length=1)
    """Candidate depths of extrusion, in normalised units."""
    colours: int = Field(default=2000, gt=0)
    """Maximum number of hidden surface points of each view whose colours are evaluated."""
