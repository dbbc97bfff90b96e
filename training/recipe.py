"""A recipe: everything that decides what a training run makes, in one YAML file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from models.bundle import NAME_PATTERN
from models.merge_schedule import MergeSchedule
from models.registry import architectures, named, read_config, systems
from models.spec import Clip, Fill, Preprocess, Preset, Sound, Space, Task
from training.data.base import Augment
from training.data.packages import PyPIPackage
from training.data.registry import DataSettings
from training.errors import RecipeError
from training.evaluation.actions_settings import ActionsQuality
from training.evaluation.depth_settings import DepthQuality
from training.evaluation.household_settings import HouseholdQuality
from training.evaluation.inpainting_settings import InpaintingQuality
from training.evaluation.naming_settings import NamingQuality
from training.evaluation.painting_settings import PaintingQuality
from training.evaluation.restoring_settings import RestoringQuality
from training.evaluation.shape_settings import ReconstructionQuality
from training.evaluation.sounds_settings import SoundsQuality
from training.objectives.registry import ObjectiveSettings
from training.settings import LoopSettings, OptimiserSettings, ScheduleSettings, Settings
from training.shipped import Located, located


class ModelSettings(Settings):
    """A network of `models.registry`: a published size, single fields of its config, or both."""

    architecture: str
    size: str | None = None
    """A published name, as `opsin models` lists them."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Fields of the config beside the size's, or instead of them. `classes` is the number of labels where it is left out."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.architecture not in architectures():
            raise ValueError(f"architecture {self.architecture!r} is unknown; known are {', '.join(architectures())}")
        self.resolved(labels=1)
        return self

    def resolved(self, labels: int) -> Any:
        """The config dataclass. labels: number of classes, where the config has such a field. Raises ValueError."""
        config = architectures()[self.architecture].config
        base = dataclasses.asdict(self._size()) if self.size else {}
        fields = _merged(base, self.config)
        names = [field.name for field in dataclasses.fields(config)]
        if "classes" in names and "classes" not in self.config and labels:
            fields["classes"] = labels
        return read_config(config, fields)

    def _size(self) -> Any:
        tables = [table for system in systems() for table in system.sizes if table.architecture == self.architecture]
        sizes = {name: config for table in tables for name, config in named(table.configs).items()}
        if self.size not in sizes:
            raise ValueError(f"size {self.size!r} of {self.architecture} is unknown; known are {', '.join(sizes) or 'none'}")
        return sizes[self.size]


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` over `base`; mappings inside are merged, not replaced."""
    result = dict(base)
    for name, value in changes.items():
        inner = result.get(name)
        result[name] = _merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return result


class Initial(StrEnum):
    """Starting values of a phase without starting weights."""

    RANDOM = "random"
    NEIGHBOURS = "neighbours"
    """For a DiffMAE of images: attention looks at neighbouring patches (`models.diffmae.neighbours`)."""
    NEAREST = "nearest"
    """For an MCC: queries look at the nearest seen points (`models.mcc.nearest`)."""
    MOTION = "motion"
    """For a MAE-ST: patches see motion (`models.mae_st.motion`)."""


class PublishedData(Settings):
    """The data that a paper trained on. `--dry-run` counts with it where the data is not at hand."""

    samples: int | None = Field(default=None, gt=0)
    """Samples of an epoch; None where the paper does not say."""
    labels: int = Field(default=0, ge=0)
    """Classes."""


class Phase(Settings):
    """One objective, trained from its starting weights to its last epoch."""

    name: str
    objective: ObjectiveSettings
    model: ModelSettings | None = None
    """None for the recipe's."""
    start: str | None = None
    """Starting weights: the name of an earlier phase, `NAME@0` for the weights that it started with, or the path of a bundle or a
    safetensors file. None: `initial`."""
    initial: Initial = Initial.RANDOM
    parts: dict[str, str | PyPIPackage] = Field(default_factory=dict)
    """The same for parts of the network, by their names in it: `{vision: bundles/NAME/VERSION}`; or a package of EfficientNet-Lite0."""
    data: DataSettings | None = None
    augment: Augment | None = None
    """None for the recipe's, both."""
    published_data: PublishedData | None = None
    """None for the recipe's."""
    preprocess: Preprocess | None = None
    optimiser: OptimiserSettings
    schedule: ScheduleSettings = ScheduleSettings()
    loop: LoopSettings

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str) -> str:
        if not NAME_PATTERN.fullmatch(value):
            raise ValueError(f"{value!r}: use a-z, 0-9, '.', '_' and '-'")
        return value


def _sources(phase: Phase) -> list[tuple[str, str]]:
    """Fields of a phase that name weights of earlier phases or files, and what they name."""
    parts = ((f"parts.{name}", source) for name, source in phase.parts.items() if isinstance(source, str))
    return [("start", phase.start or ""), *parts]


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


class FlagsQuality(Settings):
    """The starter's measurements: accuracy by source, against baselines, with and without pre-training, and by rung."""

    kind: Literal["flags"]
    ladder: LadderSettings
    with_pretraining: str
    without_pretraining: str
    """Phases to compare."""
    examples: Located | None = None
    """A folder of images whose predictions the bundle records, so that anybody can check the weights."""


class HeldOutQuality(Settings):
    """Accuracy on labelled images that were not trained on."""

    kind: Literal["held-out"]
    data: DataSettings
    ladder: LadderSettings | None = None


class ClipsQuality(Settings):
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


class Release(Settings):
    """The bundle that a recipe ends in."""

    task: Task
    phase: str | None = None
    """Phase whose network it holds; None: the last one."""
    quality: (
        FlagsQuality
        | HeldOutQuality
        | ClipsQuality
        | InpaintingQuality
        | RestoringQuality
        | PaintingQuality
        | ActionsQuality
        | ReconstructionQuality
        | HouseholdQuality
        | DepthQuality
        | SoundsQuality
        | NamingQuality
        | None
    ) = Field(default=None, discriminator="kind")
    """None: nothing is measured, and the bundle says so."""
    dtype: Literal["float16", "float32"] = "float16"


class Recipe(Settings):
    name: str
    version: str
    description: str = ""
    trained_on: str = ""
    note: str = ""
    license: str
    seed: int = Field(default=0, ge=0)
    data: DataSettings
    published_data: PublishedData | None = None
    augment: Augment = Augment()
    preprocess: Preprocess | None = None
    """None for networks that take no images."""
    clip: Clip | None = None
    sound: Sound | None = None
    space: Space | None = None
    """None for networks that reconstruct nothing, or are asked as MCC is for CO3D."""
    temperature: float | None = Field(default=None, ge=0, le=1)
    """Temperature in the bundle; for models that fill holes."""
    preset: Preset | None = None
    """Preset in the bundle; for models that fill holes."""
    fill: list[Fill] = Field(default_factory=list)
    """Rules of the bundle; for models that fill holes."""
    words: int = Field(default=0, ge=0)
    """Token ids of a caption."""
    model: ModelSettings | None = None
    phases: list[Phase] = Field(min_length=1)
    release: Release | None = None
    """None: no bundle is written; the run folder holds the weights."""

    @field_validator("name", "version")
    @classmethod
    def _fits_a_bundle(cls, value: str) -> str:
        if not NAME_PATTERN.fullmatch(value):
            raise ValueError(f"{value!r}: use a-z, 0-9, '.', '_' and '-', starting with a letter or digit, at most 64 characters")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        known: set[str] = set()
        for number, phase in enumerate(self.phases):
            where = f"phases.{number}"
            if phase.name in known:
                raise ValueError(f"{where}.name: {phase.name} is the name of an earlier phase too")
            if phase.model is None and self.model is None:
                raise ValueError(f"{where}.model: neither the phase nor the recipe has one")
            for field, source in _sources(phase):
                start = source.removesuffix("@0")
                if start and start not in known and not Path(start).suffix and "/" not in start:
                    raise ValueError(f"{where}.{field}: {start} is no earlier phase ({', '.join(known) or 'there is none'}) and no path")
            if phase.start and phase.initial is not Initial.RANDOM:
                raise ValueError(f"{where}.initial: {phase.initial.value} would be overwritten by the weights of {phase.start}")
            self._sizes_agree(phase, where)
            known.add(phase.name)
        if self.release and self.release.phase is not None and self.release.phase not in known:
            raise ValueError(f"release.phase: {self.release.phase} is no phase; there are {', '.join(known)}")
        quality = self.release.quality if self.release else None
        if isinstance(quality, FlagsQuality) and not {quality.with_pretraining, quality.without_pretraining} <= known:
            raise ValueError(f"release.quality: with_pretraining and without_pretraining are phases; there are {', '.join(known)}")
        if isinstance(quality, InpaintingQuality) and not {quality.one_step, quality.same_budget} <= known:
            raise ValueError(
                f"release.quality: one_step and same_budget are phases; there are {', '.join(phase.name for phase in self.phases)}"
            )
        if isinstance(quality, ActionsQuality) and quality.single_frames not in known:
            raise ValueError(f"release.quality.single_frames: {quality.single_frames} is no phase; there are {', '.join(known)}")
        if isinstance(quality, HouseholdQuality) and quality.ablation not in known:
            raise ValueError(
                f"release.quality.ablation: {quality.ablation} is no phase; there are {', '.join(phase.name for phase in self.phases)}"
            )
        if isinstance(quality, PaintingQuality):
            self._judged_by_others(quality)
        return self

    def _judged_by_others(self, quality: PaintingQuality) -> None:
        """Raise ValueError where a phase learns from the features that judge it."""
        for number, phase in enumerate(self.phases):
            painting = getattr(phase.objective, "painting", None)
            if painting is not None and painting.features.name == quality.features.name:
                raise ValueError(f"phases.{number}.objective.painting.features: {quality.features.name} judges, so nothing learns from it")

    def _sizes_agree(self, phase: Phase, where: str) -> None:
        preprocess = phase.preprocess or self.preprocess
        if preprocess is None:
            return
        size = getattr(self.model_of(phase).resolved(labels=1), "image_size", None)
        if isinstance(size, int) and size != preprocess.image_size:
            raise ValueError(f"{where}: preprocess.image_size {preprocess.image_size} is not the model's image_size {size}")
        if preprocess.interpolation == "tf1-bicubic":
            raise ValueError("preprocess.interpolation tf1-bicubic: only the service prepares pictures so")

    def model_of(self, phase: Phase) -> ModelSettings:
        model = phase.model or self.model
        assert model is not None
        return model


def read(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """A recipe with `changes` such as `phases.0.loop.batch_size=8` over it. Raises RecipeError."""
    try:
        content: Any = yaml.safe_load(located(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not YAML: {error}") from error
    if changes:
        content = json.loads(json.dumps(content, default=str))  # aliases of YAML are one object, and a change is meant for one place
    for change in changes:
        _apply(content, change)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{path}: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    """Field and reason of the first mistake. The kinds that pydantic puts between fields are left out."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "content"
    reason = first["msg"].removeprefix("Value error, ")
    return f"{where}: {reason}"


def _apply(content: Any, change: str) -> None:
    """Set one field in place. Raises RecipeError."""
    path, found, value = change.partition("=")
    if not found:
        raise RecipeError(f"{change}: overrides have the form FIELD=VALUE, such as phases.0.loop.batch_size=8")
    *parents, last = path.split(".")
    place = content
    for depth, part in enumerate(parents):
        try:
            if isinstance(place, dict) and part not in place:
                place[part] = {}
            place = place[int(part) if isinstance(place, list) else part]
        except (LookupError, ValueError, TypeError) as error:
            raise RecipeError(f"{change}: the recipe has no {'.'.join(parents[: depth + 1])}") from error
    try:
        place[int(last) if isinstance(place, list) else last] = yaml.safe_load(value)
    except (LookupError, ValueError, TypeError) as error:
        raise RecipeError(f"{change}: the recipe has no {path}") from error
