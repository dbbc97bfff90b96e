"""Settings of the evaluation of actions."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from starters.data.people.motions import MotionRecording
from starters.evaluation.starter_quality import StarterQuality
from training.data.packages import PyPIPackage
from training.evaluation.trained_classifier import SplitQuality
from training.recipe_settings import RecipeSettings
from training.shipped_files import Located


class SeenAction(RecipeSettings):
    """Action of a person in a clip, annotated by eye; times are in seconds."""

    person: int
    """Number of the tracked person."""
    begin: float
    end: float
    what: str


class RealClip(RecipeSettings):
    """Real video on which the network is run. It is downloaded, and no image of it is kept."""

    package: PyPIPackage
    file: str
    detector: Located
    """Folder of a bundle with the task `pose`."""
    seen: list[SeenAction] = Field(default_factory=list)


class ActionsSettings(StarterQuality, SplitQuality):
    """Accuracy and average precision by class on held-out recordings, against baselines."""

    kind: Literal["actions"] = "actions"
    phases: ClassVar = ("single_frames",)
    held_out: list[MotionRecording] = Field(min_length=1)
    """Recordings of the test split; there is no validation split."""
    single_frames: str
    """Phase that trained the same network on single frames."""
    cameras: int = Field(default=4, gt=0)
    """Number of views of each moment."""
    every: float = Field(default=1.0, gt=0)
    """Interval of moments in seconds."""
    drawn: int = Field(default=3000, ge=100)
    """Number of training tracks that the baselines are fitted to."""
    clips: list[RealClip] = Field(default_factory=list)
