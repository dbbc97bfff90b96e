"""Settings of a recipe for judging its network's reconstructions."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from training.settings import Settings
from training.starters.renders.scenes import Renders


class ReconstructionQuality(Settings):
    """Precision, recall and F1 of the surfaces of held-out objects, against the seen points alone and extruded."""

    kind: Literal["reconstruction"]
    data: Renders
    """Renders of `part: test`; whatever is chosen is chosen on `part: val` of the same."""
    views: int = Field(default=2, gt=0)
    """Views of each object, at most."""
    distance: float = Field(default=0.1, gt=0)
    """Below which a point of one surface is met by the other, in normalised units."""
    spacing: float = Field(default=0.1, gt=0)
    """Spacing of the grid that is asked."""
    mode: Literal["dense", "adaptive"] = "dense"
    """Ask every point of the grid, or those that the service asks unless told otherwise: fewer, and with the same answers."""
    validation_spacing: float = Field(default=0.2, gt=0)
    """Spacing of a dense grid."""
    thresholds: list[float] = Field(default=[0.1, 0.3, 0.5], min_length=1)
    """Thresholds of occupancy; the first is the primary one, at which the service reconstructs unless told otherwise."""
    depths: list[float] = Field(default=[0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0], min_length=1)
    """Depths of extrusion to choose from, in normalised units."""

    @model_validator(mode="after")
    def _held_out(self) -> Self:
        if self.data.part != "test":
            raise ValueError("data.part: judge objects that were held out (test)")
        if not all(0 < threshold < 1 for threshold in self.thresholds):
            raise ValueError("thresholds: probabilities between 0 and 1")
        return self
