"""Settings of a recipe's `release.quality`: how its network is evaluated. The one place that lists our kinds of evaluations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator

from models.bundle import BundleSpec
from models.merge_schedule import MergeSchedule
from training.kinds import Kinds
from training.recipe_settings import RecipeSettings

if TYPE_CHECKING:
    from training.evaluation.report import Measurement
    from training.evaluation.trained_classifier import TrainedNetwork
    from training.recipe import Recipe


class DataSplit(StrEnum):
    """Part of the held-out data."""

    VAL = "val"
    """Part to choose, calibrate and set thresholds with."""
    TEST = "test"
    """Looked at once."""


class QualitySettings(RecipeSettings, ABC):
    """Settings of a kind of evaluation, and what it does."""

    kind: str
    """A short name of the kind, which reports record. A class without one has the `package.module:NAME` by which recipes name it."""

    @abstractmethod
    def measure(self, trained: TrainedNetwork) -> Measurement:
        """Measurements of the network that is released, which may be calibrated in place. Raises TrainingError."""

    def needed_files(self) -> Sequence[tuple[str, Path]]:
        """Field and path of each file or folder that must be there before the first step."""
        return ()

    def check(self, recipe: Recipe, labels: Sequence[str], cache: Path) -> None:
        """Raise TrainingError before the first step where `measure` would fail after the last."""
        return

    def planned_rungs(self) -> list[dict[str, Any]]:
        """Return the ladder of the bundle before it is measured."""
        return []

    def card(self, spec: BundleSpec) -> str:
        """Return the README of the bundle."""
        from training.evaluation.cards import card

        return card.render(spec)


class RungSettings(RecipeSettings):
    """A rung that is to be measured."""

    name: str
    schedule: int | list[int] | dict[str, int | float]

    @field_validator("schedule")
    @classmethod
    def _parses(cls, value: int | list[int] | dict[str, int | float]) -> int | list[int] | dict[str, int | float]:
        MergeSchedule.parse(value)
        return value


class LadderSettings(RecipeSettings):
    rungs: list[RungSettings] = Field(min_length=1)
    min_throughput: float = Field(gt=1)
    """The default rung is the most accurate on the validation split among those at least this fast, relative to merging off."""
    batch_size: int = Field(gt=0)
    rounds: int = Field(ge=3)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the rungs as in `bundle.json`."""
        return [rung.model_dump() for rung in self.rungs]


KINDS = Kinds(
    QualitySettings,  # type: ignore[type-abstract]
    {"held-out": "training.evaluation.classification:HeldOutQuality"},
    moved={
        "flags": "starters.evaluation.flags:FlagsQuality",
        "clips": "starters.evaluation.clips:ClipsQuality",
        "inpainting": "starters.evaluation.inpainting:InpaintingQuality",
        "actions": "starters.evaluation.actions.quality:ActionsQuality",
        "reconstruction": "starters.evaluation.reconstruction.quality:ReconstructionQuality",
        "depth": "starters.evaluation.depth:DepthQuality",
        "sounds": "starters.evaluation.sounds:SoundsQuality",
        "naming": "starters.evaluation.emoji_retrieval:NamingQuality",
    },
)

AnyQuality = Annotated[SerializeAsAny[QualitySettings], BeforeValidator(KINDS.read)]
"""Field of a recipe with settings of any kind."""
