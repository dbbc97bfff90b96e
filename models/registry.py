"""The systems of this package and their entries: the one place that lists them.

Imports no torch. An entry names the code of its models, which is imported when asked for: a worker needs the models of its own bundles
only, and a gateway, which asks whether a bundle's tokens merge, needs none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import TypeAdapter, ValidationError

from models import extensions
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
"""Modules that each hold a `SYSTEM`. To add a system, write its folder and add a line here."""

Reference = str
"""An object by its name, "package.module:NAME", imported when asked for."""


def _square(config: Any) -> tuple[int, int] | None:
    """Height and width by the side that most configs name."""
    side = getattr(config, "image_size", None)
    return None if side is None else (side, side)


@dataclass(frozen=True)
class BundleDefaults:
    """Fields of a bundle beside its weights, as functions of the architecture's config."""

    task: Callable[[Any], TaskName]
    size: Callable[[Any], tuple[int, int] | None] = _square
    """Height and width of the images or frames; None if the model takes none, or any."""
    clip: Callable[[Any], Clip | None] = lambda config: None
    sound: Callable[[Any], Sound | None] = lambda config: None
    space: Callable[[Any], QuerySpace | None] = lambda config: None
    classes: Callable[[Any], int] | None = None
    """Number of labels; None where the config does not tell it, or the task has none."""
    names: Callable[[Any], Sequence[str]] = lambda config: ()
    """The labels, if the config tells which classes these are."""


class InputMaker(Protocol):
    """Random input for one batch, in a model's precision and on its device."""

    def normal(self, *shape: int) -> Tensor:
        """(batch, *shape) of normal values."""

    def uniform(self, *shape: int) -> Tensor:
        """(batch, *shape) of the noise by which patches are chosen, float32."""

    def words(self, length: int) -> Tensor:
        """(batch, length) of token ids."""


@dataclass(frozen=True)
class ViewCounts:
    """The views of a clip whose scores a test averages."""

    count: int = 1
    """Number of them in time."""
    crops: int = 1
    """Number of crops of each, 1 or 3."""


ForwardCall = Callable[[], object]
"""A forward pass over a batch that has been prepared."""


@dataclass(frozen=True)
class DummyForward:
    """A forward pass of an architecture at its own size, to count its cost and to time it."""

    unit: str
    """One row of a batch; "sample" if the config decides between images and clips."""
    tokens: Callable[[Any], int]
    """Number of tokens that the first block sees, from the config."""
    call: Reference
    """A function (model, its config, `InputMaker`) → `ForwardCall`."""


@dataclass(frozen=True)
class Architecture:
    """A network that a bundle can name."""

    name: str
    model: Reference
    """The class; its config dataclass stands beside it and has the same name with `Config` behind."""
    purpose: BundleDefaults
    native: DummyForward | None = None
    """None for a model that computes nothing."""
    forwards: Mapping[str, Reference] = field(default_factory=dict)
    """Task → the `ForwardFn` that serves it."""
    steps: Mapping[str, Reference] = field(default_factory=dict)
    """Task → the `StepwiseFactory` that serves it step by step."""
    precise_tasks: frozenset[str] = frozenset()
    """Tasks that are served in float32 only. Where many steps feed on each other, an answer in a shorter format would depend on the shapes
    of the batches that a job shares; where the answer is a vector, an index must not mix formats."""
    pools: Callable[[Mapping[str, Any]], tuple[str, ...]] = lambda config: ()
    """From the `config` of `bundle.json`: how the vector of an image can be pooled, `cls` or `mean`, the model's own way first; empty where
    there is no vector."""
    token_vectors: Callable[[Mapping[str, Any]], bool] = lambda config: False
    """From the same: whether each merged token of an image can become a vector."""
    merges: bool = True
    """Whether tokens can merge; False for models that pool their tokens by trained strides."""
    answers: Callable[[Mapping[str, Any]], str | None] | None = None
    """From the same: the route that answers with a bundle, None if none does. The field is None where the bundle's `task` tells."""
    views: Callable[[Mapping[str, Any]], ViewCounts] = lambda config: ViewCounts()
    """From the same: the views that the published test of a clip takes."""
    fuses: Callable[[Mapping[str, Any]], bool] = lambda config: False
    """From the same: whether sound and clip are classified together; otherwise each by itself."""
    reader: Reference | None = None
    """A function (bundle) → `TokenizeFn`, for bundles that read texts. Raises BundleError."""
    open: Reference | None = None
    """A function (file, config, device) → model, for weights that are a graph; None for weights of `model`. Raises ValueError."""
    assemble: Reference | None = None
    """A function (spec, config, members by role as `models.layers.loaded_member.LoadedMember`) → model, for a pipeline; None for a model
    with weights. Raises ValueError for members that do not fit each other."""
    graph: Reference | None = None
    """A function (model, preprocess, int8) → bytes of an ONNX graph (`models.systems.vit.onnx_graph.classifier_graph`), by which task
    classify may be answered instead; None if there is none."""

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
    """Published sizes of one architecture."""

    system: str
    architecture: str
    source: str
    """The paper."""
    configs: Reference
    """A mapping of names to configs."""


@dataclass(frozen=True)
class System:
    """The entry of one folder."""

    architectures: tuple[Architecture, ...]
    sizes: tuple[SizeTable, ...] = ()
    families: Mapping[str, Reference] = field(default_factory=dict)
    """Name → `models.checkpoints.family.Family`, of published checkpoints that become one of the architectures."""
    hub_classes: Mapping[str, Reference] = field(default_factory=dict)
    """Class of transformers, as `architectures` in `config.json` names it → the `Family` that reads its weights."""
    timm_networks: Reference | None = None
    """A function (`architecture` of timm's `config.json`) → the `Family` that reads its weights, None for an unknown one."""


def systems() -> tuple[System, ...]:
    """Return our own systems, and those of installed packages. Raises ExtensionError."""
    return _entries(SYSTEMS)


def architectures() -> Mapping[str, Architecture]:
    """All architectures by name."""
    return _architectures(SYSTEMS)


def family_names() -> tuple[str, ...]:
    return tuple(name for system in systems() for name in system.families)


def hub_classes() -> Mapping[str, Reference]:
    """All classes of transformers that are read, and their families."""
    return {name: reference for system in systems() for name, reference in system.hub_classes.items()}


@cache
def _entries(modules: tuple[str, ...]) -> tuple[System, ...]:
    ours = tuple(import_module(module).SYSTEM for module in modules)
    return (*ours, *_extensions({architecture.name for system in ours for architecture in system.architectures}))


def _extensions(known: set[str]) -> Iterator[System]:
    """known: names of architectures that there are already."""
    for extension in extensions.extensions(extensions.SYSTEMS):
        system = extension.value
        if not isinstance(system, System):
            raise extensions.ExtensionError(f"{extension}: names a {type(system).__name__}, not an opsin.extending.System")
        for architecture in system.architectures:
            if architecture.name in known:
                raise extensions.ExtensionError(f"{extension}: an architecture {architecture.name!r} exists already")
            known.add(architecture.name)
        yield system


@cache
def _architectures(modules: tuple[str, ...]) -> Mapping[str, Architecture]:
    return {architecture.name: architecture for system in _entries(modules) for architecture in system.architectures}


def resolve(reference: Reference) -> Any:
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def read_config(config: type, fields: Mapping[str, Any]) -> Any:
    """A config dataclass from JSON. Retired fields that are switched off are skipped. Raises ValueError that names the field."""
    fields = {name: value for name, value in fields.items() if value or name not in getattr(config, "RETIRED", ())}
    known = [field.name for field in dataclasses.fields(config)]
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: unknown; the fields are {', '.join(known)}")
    try:
        return TypeAdapter(config).validate_python(dict(fields))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'config'}: {first['msg'].removeprefix('Value error, ')}") from error
