"""What a recipe says about how its network's labels of sounds are judged."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from training.data.packages import DebianPackage
from training.data.soundfonts import Font
from training.settings import Settings


class Recordings(Settings):
    """Files whose names say what they are."""

    files: list[str] = Field(min_length=1)
    """Patterns of names without their ending."""
    right: list[str] = Field(min_length=1)
    """Labels, any of which is right."""


class Recorded(Settings):
    """A package of recorded samples."""

    name: str
    package: DebianPackage
    folder: str
    license: str
    recordings: list[Recordings] = Field(min_length=1)


class SoundsQuality(Settings):
    """Labels of notes of other fonts and of recorded samples, against logistic regression and the nearest neighbour on mean log-mel
    spectrograms. The primary figure is the share of the notes of the test font whose best label is right, all classes alike."""

    kind: Literal["sounds"]
    validation: list[Font] = Field(min_length=1)
    """Presets for choices."""
    test: list[Font] = Field(min_length=1)
    recorded: Recorded
    """Test, too."""
    notes: int = Field(default=40, gt=1)
    """Notes of each class."""
    baseline_sounds: int = Field(default=8000, gt=0)
    """Sounds as trained on that the baselines learn from."""
    rungs: dict[str, int] = Field(default_factory=dict)
    """The ladder: tokens that merge in each block, by rung."""
    batch_size: int = Field(default=32, gt=0)
    rounds: int = Field(default=9, ge=3)
    """How the throughput of rungs is measured."""
