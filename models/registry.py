"""Registry of systems and their published sizes: this package's own and those of extensions, other packages with entry points
`opsin.systems` and `opsin.tasks`.

Imports no torch. An entry names the code of its models, which is imported when needed: a worker needs only the models of its own bundles,
and a gateway, which needs to know whether a bundle's tokens merge, none. Extensions are imported when the tables of systems and tasks are
first read; confined processes import none, since `OPSIN_EXTENSIONS` is false there.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import TypeAdapter, ValidationError

from models.bundle_schema import Clip, QuerySpace, Sound, TaskName

if TYPE_CHECKING:
    from torch import Tensor, nn


SYSTEMS: tuple[str, ...] = (
    "models.systems.vit.system",
    "models.systems.mae.system",
    "models.systems.mae_st.system",
    "models.systems.image_text.system",
    "models.systems.diffmae.system",
    "models.systems.mcc.system",
    "models.systems.depth.system",
    "models.systems.mvit.system",
    "models.systems.mavil.system",
    "models.systems.hmr2.system",
    "models.systems.lart.system",
    "models.systems.phalp.system",
    "models.systems.onnx.system",
    "models.systems.actions.system",
    "models.systems.null.system",
)
"""Modules with a `SYSTEM` each. To add a system, write its folder and add a line here."""

EXTENSION_SWITCH = "OPSIN_EXTENSIONS"
EXTENSION_GROUPS = SYSTEM_GROUP, TASK_GROUP = "opsin.systems", "opsin.tasks"

Reference = str
"""Name of an object, "package.module:NAME", which is imported when needed."""


def _square(config: Any) -> tuple[int, int] | None:
    """Return height and width from the side that most configs have."""
    side = getattr(config, "image_size", None)
    return None if side is None else (side, side)


@dataclass(frozen=True)
class BundleDefaults:
    """Default fields of an architecture's bundles, as functions of its config."""

    task: Callable[[Any], TaskName]
    size: Callable[[Any], tuple[int, int] | None] = _square
    """Height and width of the images or frames; None if the model takes none, or any size."""
    clip: Callable[[Any], Clip | None] = lambda config: None
    sound: Callable[[Any], Sound | None] = lambda config: None
    space: Callable[[Any], QuerySpace | None] = lambda config: None
    classes: Callable[[Any], int] | None = None
    """Number of labels; None if the config does not declare it, or the task has none."""
    names: Callable[[Any], Sequence[str]] = lambda config: ()


class InputMaker(Protocol):
    """Random input for one batch, in a model's precision and on its device."""

    def normal(self, *shape: int) -> Tensor:
        """Draw normal values (batch, *shape)."""

    def uniform(self, *shape: int) -> Tensor:
        """Draw the noise that chooses patches, float32 (batch, *shape)."""

    def words(self, length: int) -> Tensor:
        """Return token ids (batch, length)."""


@dataclass(frozen=True)
class ViewCounts:
    """Views of a clip whose scores a test averages."""

    count: int = 1
    crops: int = 1
    """Number of crops of each view, 1 or 3."""


ForwardCall = Callable[[], object]
"""Forward pass over a prepared batch."""


@dataclass(frozen=True)
class DummyForward:
    """Forward pass on random input of an architecture's own size, whose cost is counted and whose time is measured."""

    unit: str
    """Name of one row of a batch; "sample" if the config decides between images and clips."""
    tokens: Callable[[Any], int]
    """Number of tokens of the first block, from the config."""
    call: Reference
    """Function (model, its config, `InputMaker`) → `ForwardCall`."""


@dataclass(frozen=True)
class Architecture:
    name: str
    model: Reference
    """The class; its config dataclass is in the same module and has the same name followed by `Config`."""
    bundle_defaults: BundleDefaults
    dummy_forward: DummyForward | None = None
    """None for a model that computes nothing."""
    forwards: Mapping[str, Reference] = field(default_factory=dict)
    """Task → the `ForwardFn` that serves it."""
    steps: Mapping[str, Reference] = field(default_factory=dict)
    """Task → the `StepwiseFactory` that serves it in steps."""
    precise_tasks: frozenset[str] = frozenset()
    """Tasks that are served in float32 only. After many dependent steps, outputs of a shorter format would depend on the shapes of the
    batches that a job shares; and an index must not mix vectors of several formats."""
    pools: Callable[[Mapping[str, Any]], tuple[str, ...]] = lambda config: ()
    """Ways in which the vector of an image can be pooled, `cls` or `mean`, the model's own first; empty without vectors. From the `config`
    of `bundle.json`."""
    token_vectors: Callable[[Mapping[str, Any]], bool] = lambda config: False
    """Whether each merged token of an image can become a vector. From the same `config`."""
    merges: bool = True
    """Whether tokens can merge; False for models that pool their tokens by trained strides."""
    route_of: Callable[[Mapping[str, Any]], str | None] | None = None
    """Route that answers with a bundle, None if none does, from the same `config`; no function: the bundle's `task` is the route."""
    views: Callable[[Mapping[str, Any]], ViewCounts] = lambda config: ViewCounts()
    """Views in the published test of a clip. From the same `config`."""
    fuses: Callable[[Mapping[str, Any]], bool] = lambda config: False
    """Whether sound and clip are classified together, not each by itself. From the same `config`."""
    reader: Reference | None = None
    """Function (bundle) → `TokenizeFn`, for bundles that read texts. Raises BundleError."""
    open: Reference | None = None
    """Function (file, config, device) → model, for weights that are a graph; None for weights of `model`. Raises ValueError."""
    assemble: Reference | None = None
    """Function (spec, config, members by role as `models.layers.stepwise.LoadedMember`) → model, for a pipeline; None for a model with
    weights. Raises ValueError for members that do not fit each other."""
    graph: Reference | None = None
    """Function (model, preprocess, int8) → bytes of an ONNX graph (`models.systems.vit.onnx_graph.classifier_graph`), which may serve task
    classify instead; None if there is none."""

    @property
    def config(self) -> type:
        config: type = resolve(f"{self.model}Config")
        return config

    def build(self, config: Any) -> nn.Module:
        model: nn.Module = resolve(self.model)(config)
        return model

    def serves(self, task: str) -> bool:
        return task in self.forwards or task in self.steps


@dataclass(frozen=True)
class SizeTable:
    system: str
    architecture: str
    source: str
    configs: Reference


@dataclass(frozen=True)
class System:
    architectures: tuple[Architecture, ...]
    sizes: tuple[SizeTable, ...] = ()
    families: Mapping[str, Reference] = field(default_factory=dict)
    """Name → `models.checkpoints.family.Family`, of published checkpoints that become one of the architectures."""
    hub_classes: Mapping[str, Reference] = field(default_factory=dict)
    """Class of transformers, as `architectures` in `config.json` names it → the `Family` that reads its weights."""
    timm_networks: Reference | None = None
    """Function (`architecture` of timm's `config.json`) → the `Family` that reads its weights, None for an unknown one."""


class ExtensionError(Exception):
    """Error of an extension that cannot be used; the message names it and its package."""


@dataclass(frozen=True)
class Extension:
    group: str
    """Group of entry points that lists it."""
    name: str
    package: str
    version: str
    value: Any

    def __str__(self) -> str:
        return f"extension {self.name} of {self.package} {self.version}"

    @property
    def facts(self) -> dict[str, str]:
        """Return the fields of its log event."""
        return {"group": self.group, "name": self.name, "package": self.package, "version": self.version}


def systems() -> tuple[System, ...]:
    """Return our own systems, and those of installed packages. Raises ExtensionError."""
    return _entries(SYSTEMS)


def architectures() -> Mapping[str, Architecture]:
    return _architectures(SYSTEMS)


def family_names() -> tuple[str, ...]:
    return tuple(name for system in systems() for name in system.families)


def hub_classes() -> Mapping[str, Reference]:
    """Return all classes of transformers that can be read, with their families."""
    return {name: reference for system in systems() for name, reference in system.hub_classes.items()}


@cache
def _entries(modules: tuple[str, ...]) -> tuple[System, ...]:
    own_systems = tuple(import_module(module).SYSTEM for module in modules)
    return (*own_systems, *_extension_systems({architecture.name for system in own_systems for architecture in system.architectures}))


@cache
def extensions(group: str) -> tuple[Extension, ...]:
    """Import what the installed packages list in a group, in the order of names. Raises ExtensionError."""
    if os.environ.get(EXTENSION_SWITCH, "true").lower() not in ("true", "1", "yes", "on", "t", "y"):
        return ()
    imported = []
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        package, version = ("?", "?") if point.dist is None else (point.dist.name, point.dist.version)
        try:
            imported.append(Extension(group, point.name, package, version, point.load()))
        except Exception as error:  # a foreign module may raise anything while it is imported
            raise ExtensionError(f"extension {point.name} of {package} {version}: {point.value} cannot be imported: {error!r}") from error
    return tuple(imported)


def all_extensions() -> tuple[Extension, ...]:
    """Return all extensions of this process. Raises ExtensionError."""
    return tuple(extension for group in EXTENSION_GROUPS for extension in extensions(group))


def _extension_systems(names: set[str]) -> Iterator[System]:
    """Yield the systems of extensions. names: of architectures that exist already."""
    for extension in extensions(SYSTEM_GROUP):
        system = extension.value
        if not isinstance(system, System):
            raise ExtensionError(f"{extension}: names a {type(system).__name__}, not an opsin.extending.System")
        for architecture in system.architectures:
            if architecture.name in names:
                raise ExtensionError(f"{extension}: an architecture {architecture.name!r} exists already")
            names.add(architecture.name)
        yield system


@cache
def _architectures(modules: tuple[str, ...]) -> Mapping[str, Architecture]:
    return {architecture.name: architecture for system in _entries(modules) for architecture in system.architectures}


def resolve(reference: Reference) -> Any:
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def read_config(config: type, fields: Mapping[str, Any]) -> Any:
    """Build a config dataclass from JSON. Retired fields that are switched off are skipped. Raises ValueError that names the field."""
    fields = {name: value for name, value in fields.items() if value or name not in getattr(config, "RETIRED", ())}
    names = [field.name for field in dataclasses.fields(config)]
    unknown = sorted(set(fields) - set(names))
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: unknown; the fields are {', '.join(names)}")
    try:
        return TypeAdapter(config).validate_python(dict(fields))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'config'}: {first['msg'].removeprefix('Value error, ')}") from error


@dataclass(frozen=True)
class Size:
    name: str
    system: str
    architecture: str
    config: Any
    source: str


def sizes() -> Mapping[str, Size]:
    """Return all published sizes by name. Imports the code of every system."""
    return {
        name: Size(name, table.system, table.architecture, config, table.source)
        for system in systems()
        for table in system.sizes
        for name, config in resolve(table.configs).items()
    }
