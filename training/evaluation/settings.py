"""Settings of a recipe's `release.quality`: how its network is evaluated. The one place that lists the kinds of evaluations."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from models.merge_schedule import MergeSchedule
from starters.data.images.clip_art import ClipArt
from starters.data.images.iconify import Style
from starters.data.people.motions import Recording
from starters.evaluation.data_settings import Clip, EarlierTests, Orchestra, Recorded
from training.data.packages import PyPIPackage
from training.data.registry import DataSettings
from training.settings import Settings
from training.shipped import Located


class Split(StrEnum):
    """Part of the held-out data."""

    VAL = "val"
    """For choices, temperatures and thresholds."""
    TEST = "test"
    """Looked at once."""


class QualitySettings(Settings):
    """Common to all kinds."""

    kind: str
    phases: ClassVar[tuple[str, ...]] = ()
    """Fields that name phases of the recipe."""


class RungSettings(Settings):
    """A rung that is to be measured."""

    name: str
    schedule: int | list[int] | dict[str, int | float]

    @field_validator("schedule")
    @classmethod
    def _parses(cls, value: int | list[int] | dict[str, int | float]) -> int | list[int] | dict[str, int | float]:
        MergeSchedule.parse(value)
        return value


class LadderSettings(Settings):
    rungs: list[RungSettings] = Field(min_length=1)
    min_throughput: float = Field(gt=1)
    """The default rung is the most accurate on the validation split among those at least this fast, relative to merging off."""
    batch_size: int = Field(gt=0)
    rounds: int = Field(ge=3)


class FlagsQuality(QualitySettings):
    """The starter's measurements: accuracy by source, against baselines, with and without pre-training, and by rung."""

    kind: Literal["flags"]
    phases: ClassVar = (
        "with_pretraining",
        "without_pretraining",
    )
    ladder: LadderSettings
    with_pretraining: str
    without_pretraining: str
    """Phases to compare."""
    examples: Located | None = None
    """A folder of images whose predictions the bundle records, so that anybody can check the weights."""


class HeldOutQuality(QualitySettings):
    """Accuracy on labelled images that were not trained on."""

    kind: Literal["held-out"]
    data: DataSettings
    ladder: LadderSettings | None = None


class ClipsQuality(QualitySettings):
    """Accuracy of named camera moves on videos of held-out pictures and on a game's, as the service sees them; against optical flow."""

    kind: Literal["clips"]
    videos: int = Field(default=300, gt=1)
    """Videos of held-out pictures, as many of each move."""
    seconds: float = Field(default=2.2, gt=0)
    short_side: int = Field(default=144, gt=0, multiple_of=2)
    """Pixels of the videos."""
    flow_clips: int = Field(default=1500, gt=0)
    """Clips of training that optical flow is fitted to."""
    game: PyPIPackage
    """ViZDoom, whose player turns and walks: of the test split alone."""
    game_clips: int = Field(default=120, gt=1)
    ladder: LadderSettings | None = None


class Hole(StrEnum):
    BOXES = "boxes"
    """One rectangle of a tenth to a quarter of the area."""
    STROKES = "strokes"
    """One to three bent strokes of a brush."""
    CENTRE = "centre"
    """Half of the rows and half of the columns, in the middle."""


class InpaintingQuality(QualitySettings):
    """Perceptual distance, PSNR and SSIM of filled holes in held-out drawings, against simple fillings and a one-step autoencoder."""

    kind: Literal["inpainting"]
    phases: ClassVar = (
        "one_step",
        "same_budget",
    )
    data: ClipArt
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


class ActionsQuality(QualitySettings):
    """Accuracy and average precision by class on recordings that were not trained on, against simpler ways to recognise an action."""

    kind: Literal["actions"]
    phases: ClassVar = ("single_frames",)
    held_out: list[Recording] = Field(min_length=1)
    """The test split, looked at once."""
    validation: list[Recording] = Field(default_factory=list)
    """For choices and thresholds."""
    single_frames: str
    """Phase that trained the same network on single frames."""
    cameras: int = Field(default=4, gt=0)
    """Views of each moment."""
    every: float = Field(default=1.0, gt=0)
    """Seconds from one moment to the next."""
    drawn: int = Field(default=3000, ge=100)
    """Tracks of training that the simpler ways learn from."""
    clips: list[Clip] = Field(default_factory=list)


class ReconstructionQuality(QualitySettings):
    """F1 of reconstructed surfaces of held-out objects, and the error of colours that were not seen, against what needs no network, against
    what its parts tell alone, and against the same network without them."""

    kind: Literal["reconstruction"]
    phases: ClassVar = ("ablation",)
    ablation: str
    """Phase that trained the network whose queries know nothing, for as long."""
    primary: list[str] = Field(min_length=1)
    """Categories of the test that the primary figure is about; the others are told beside them, for continuity."""
    f1: float = Field(gt=0, lt=1)
    """Target of the primary figure."""
    above: float = Field(gt=0, lt=1)
    """Target of its distance from the seen points extruded."""
    views: int = Field(default=2, gt=0)
    """Views of each object, at most."""
    validation_views: int = Field(default=1, gt=0)
    """The same for what is chosen."""
    distance: float = Field(default=0.1, gt=0)
    """Below which a point of one surface is met by the other, in normalised units."""
    spacing: float = Field(default=0.1, gt=0)
    """Spacing of the grid, of which those points are asked that the service asks."""
    threshold: float = Field(default=0.1, gt=0, lt=1)
    """Threshold of occupancy at which the service reconstructs unless told otherwise; the best one on objects for choices moves there."""
    depths: list[float] = Field(default=[0.25, 0.5, 1.0, 1.5, 2.0, 3.0], min_length=1)
    """Depths of extrusion to choose from, in normalised units."""
    colours: int = Field(default=2000, gt=0)
    """Points of the surface of each view, of those that nobody saw, whose colours are asked."""


class DepthQuality(QualitySettings):
    """The error of depth that is left after the best scale and shift, on renders of held-out categories and on two photographs, against
    the inflated outline."""

    kind: Literal["depth"]
    views: int = Field(default=4, gt=0)
    """Views of each object, at most."""
    margin: float = Field(default=0.1, ge=0)
    """Share of an object's size that photographs show around it, as the service does."""


class SoundsQuality(QualitySettings):
    """Labels of notes of other instruments and of recorded samples, against logistic regression and the nearest neighbour on mean log-mel
    spectrograms. The primary figure is the share of the notes of the test whose best label is right, all classes alike."""

    kind: Literal["sounds"]
    validation: list[Orchestra] = Field(min_length=1)
    """For choices."""
    test: Orchestra
    recorded: list[Recorded] = Field(min_length=1)
    """Test, too."""
    seen: EarlierTests = EarlierTests()
    notes: int = Field(default=40, gt=1)
    """Notes of each class."""
    baseline_sounds: int = Field(default=8000, gt=0)
    """Sounds as trained on that the baselines learn from."""
    rungs: dict[str, int] = Field(default_factory=dict)
    """The ladder: tokens that merge in each block, by rung."""
    batch_size: int = Field(default=32, gt=0)
    rounds: int = Field(default=9, ge=3)
    """How the throughput of rungs is measured."""


class NamingQuality(QualitySettings):
    """Emoji of an artist who was not learnt from are named among all names; the primary figure is the share that is named correctly.
    Held-out clip art is found by its title."""

    kind: Literal["naming"]
    validation: Style
    """The artist for choices."""
    test: Style
    """The artist whose emoji are looked at once."""
    held_back: list[str] = Field(default_factory=list)
    """Languages that were not learnt, in which emoji are named too."""
    drawings: int = Field(default=500, ge=2)
    """Held-out drawings of clip art with titles of their own, at most."""
    features: PyPIPackage
    """Weights of EfficientNet-Lite0, by whose features the nearest neighbour is chosen."""


Quality = Annotated[
    FlagsQuality
    | HeldOutQuality
    | ClipsQuality
    | InpaintingQuality
    | ActionsQuality
    | ReconstructionQuality
    | DepthQuality
    | SoundsQuality
    | NamingQuality,
    Field(discriminator="kind"),
]
