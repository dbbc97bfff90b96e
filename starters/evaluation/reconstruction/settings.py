"""Settings of the evaluation of reconstructions."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from starters.evaluation.starter_quality import StarterQuality
from training.evaluation.trained_classifier import SplitQuality


class ReconstructionSettings(StarterQuality, SplitQuality):
    """F1 of reconstructed surfaces of held-out objects, and the error of colours that were not seen, against what needs no network, against
    what its parts tell alone, and against the same network without them."""

    kind: Literal["reconstruction"] = "reconstruction"
    phases: ClassVar = ("ablation",)
    ablation: str
    """Phase that trained the network whose queries know nothing, for as long."""
    primary: list[str] = Field(min_length=1)
    """Categories of the test that the primary figure is about; the others are told beside them, for continuity."""
    f1: float = Field(gt=0, lt=1)
    """Target of the primary figure."""
    above: float = Field(gt=0, lt=1)
    """Target of its distance from the seen points extruded."""
    views: int = Field(default=2, gt=0)
    """Views of each object, at most."""
    validation_views: int = Field(default=1, gt=0)
    """The same for what is chosen."""
    distance: float = Field(default=0.1, gt=0)
    """Below which a point of one surface is met by the other, in normalised units."""
    spacing: float = Field(default=0.1, gt=0)
    """Spacing of the grid, of which those points are asked that the service asks."""
    threshold: float = Field(default=0.1, gt=0, lt=1)
    """Threshold of occupancy at which the service reconstructs unless told otherwise; the best one on objects for choices moves there."""
    depths: list[float] = Field(default=[0.25, 0.5, 1.0, 1.5, 2.0, 3.0], min_length=1)
    """Depths of extrusion to choose from, in normalised units."""
    colours: int = Field(default=2000, gt=0)
    """Points of the surface of each view, of those that nobody saw, whose colours are asked."""
