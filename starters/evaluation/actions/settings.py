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
    """Actions of a person in a clip, as somebody saw them, in seconds."""

    person: int
    """As the tracker numbers them."""
    begin: float
    end: float
    what: str


class RealClip(RecipeSettings):
    """A real video that the network is shown. It is downloaded, and no picture of it is kept."""

    package: PyPIPackage
    file: str
    detector: Located
    """A bundle of task pose."""
    seen: list[SeenAction] = Field(default_factory=list)


class ActionsSettings(StarterQuality, SplitQuality):
    """Accuracy and average precision by class on recordings that were not trained on, against simpler ways to recognise an action."""

    kind: Literal["actions"] = "actions"
    phases: ClassVar = ("single_frames",)
    held_out: list[MotionRecording] = Field(min_length=1)
    """The test split, looked at once."""
    validation: list[MotionRecording] = Field(default_factory=list)
    """For choices and thresholds."""
    single_frames: str
    """Phase that trained the same network on single frames."""
    cameras: int = Field(default=4, gt=0)
    """Views of each moment."""
    every: float = Field(default=1.0, gt=0)
    """Seconds from one moment to the next."""
    drawn: int = Field(default=3000, ge=100)
    """Tracks of training that the simpler ways learn from."""
    clips: list[RealClip] = Field(default_factory=list)
