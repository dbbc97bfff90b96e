"""Settings of a recipe for judging its network's labels of sounds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from training.data.packages import DebianPackage
from training.settings import Settings
from training.starters.sounds.samplers import Instruments


class Recordings(Settings):
    """Files whose names say what they are."""

    files: list[str] = Field(min_length=1)
    """Patterns of paths below the folder, without the ending."""
    right: list[str] = Field(min_length=1)
    """Labels, any of which is right."""


class Orchestra(Settings):
    """Notes of each class, as instruments play them, that are judged together."""

    name: str
    fonts: list[Instruments] = Field(min_length=1)


class Recorded(Settings):
    """A package of recorded samples."""

    name: str
    package: DebianPackage
    folder: str
    license: str
    recordings: list[Recordings] = Field(min_length=1)


class Seen(Settings):
    """Tests of earlier versions, which were looked at: a table may go on with them, nothing is concluded from them."""

    test: list[Orchestra] = Field(default_factory=list)
    recorded: list[Recorded] = Field(default_factory=list)


class SoundsQuality(Settings):
    """Labels of notes of other instruments and of recorded samples, against logistic regression and the nearest neighbour on mean log-mel
    spectrograms. The primary figure is the share of the notes of the test whose best label is right, all classes alike."""

    kind: Literal["sounds"]
    validation: list[Orchestra] = Field(min_length=1)
    """For choices."""
    test: Orchestra
    recorded: list[Recorded] = Field(min_length=1)
    """Test, too."""
    seen: Seen = Seen()
    notes: int = Field(default=40, gt=1)
    """Notes of each class."""
    baseline_sounds: int = Field(default=8000, gt=0)
    """Sounds as trained on that the baselines learn from."""
    rungs: dict[str, int] = Field(default_factory=dict)
    """The ladder: tokens that merge in each block, by rung."""
    batch_size: int = Field(default=32, gt=0)
    rounds: int = Field(default=9, ge=3)
    """How the throughput of rungs is measured."""
