"""The contract of an objective with the loop.

An objective is an `nn.Module` that owns the networks it trains, those that teach it included. `forward(batch)` returns a dict: "loss",
a scalar, the mean over the samples of this process, and any number of detached scalars to be shown. What must survive a kill lives in
parameters, buffers or `get_extra_state`. `batch["draw"]`, int64 (B,), is one number per sample, a function of (seed, epoch, sample):
all randomness inside comes from it (`training.random_draws`), so that a sample meets the same fate on any rank and in any batch.

The methods below are optional.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from models.bundle_schema import Clip, Preprocess, Sound
from training.curation import Captions
from training.optim import ParameterGroup, pretraining_groups
from training.recipe_settings import OptimiserSettings, RecipeSettings

Batch = Mapping[str, Tensor]


class ObjectiveSettings(RecipeSettings, ABC):
    """Settings of a kind of objective: `objective` of a phase."""

    kind: str
    """A short name of the kind, which runs record. A class without one has the `package.module:NAME` by which recipes name it."""

    @abstractmethod
    def build(self, model: nn.Module, context: ObjectiveContext) -> nn.Module:
        """Build the objective with the phase's network. Raises ValueError if the network is of another kind."""


@dataclass(frozen=True)
class ObjectiveContext:
    """Facts that an objective may know of its run when it is built."""

    labels: tuple[str, ...] = ()
    preprocess: Preprocess | None = None
    clip: Clip | None = None
    sound: Sound | None = None
    cache: Path = Path(".cache/data")
    """Cache of packages, those of weights included."""


@runtime_checkable
class GroupsParameters(Protocol):
    def parameter_groups(self, settings: OptimiserSettings) -> list[ParameterGroup]:
        """Return groups for the optimiser; by default matrices decay, and one-dimensional parameters do not."""


@runtime_checkable
class HasPictures(Protocol):
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Name → uint8 (N, H, W, 3), to look at in TensorBoard."""


@runtime_checkable
class HasAfterStep(Protocol):
    def after_step(self, step: int, steps: int) -> None:
        """Run after each optimiser step (counted from 1) of `steps`, for example to update a teacher."""


@runtime_checkable
class ChoosesSamples(Protocol):
    @property
    def epoch_steps(self) -> int | None:
        """Steps of an epoch; None: an epoch has all samples of the data, and `subset` is not asked."""

    def subset(self, captions: Captions, epoch: int, batch: int) -> Tensor:
        """Return ids (n,) int64 of the samples of an epoch, as many as its steps take of `batch` each.

        Every rank calls it when an epoch starts or continues. An objective keeps its choice in `get_extra_state`.
        """


@runtime_checkable
class HasReleasedNetwork(Protocol):
    def released_network(self) -> nn.Module:
        """Return the network of the bundle and of later phases; by default it is the attribute `model`."""


def parameter_groups(objective: nn.Module, settings: OptimiserSettings) -> list[ParameterGroup]:
    if isinstance(objective, GroupsParameters):
        return objective.parameter_groups(settings)
    return pretraining_groups(objective, settings.weight_decay)


def released_network(objective: nn.Module) -> nn.Module:
    """Return the network to release. Raises AttributeError if an objective has neither `released_network` nor `model`."""
    if isinstance(objective, HasReleasedNetwork):
        return objective.released_network()
    model = objective.model
    assert isinstance(model, nn.Module)
    return model
