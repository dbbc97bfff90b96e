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
        """The objective around the phase's network. Raises ValueError where the network does not suit."""


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
        """Groups for the optimiser; without this method, two: matrices decay, what has one dimension does not."""


@runtime_checkable
class HasPictures(Protocol):
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Name → uint8 (N, H, W, 3), to look at in TensorBoard."""


@runtime_checkable
class HasAfterStep(Protocol):
    def after_step(self, step: int, steps: int) -> None:
        """Called after each optimiser step (counted from 1) of `steps`, as for teachers that follow their student."""


@runtime_checkable
class ChoosesSamples(Protocol):
    @property
    def epoch_steps(self) -> int | None:
        """Steps of an epoch; None: an epoch has all samples of the data, and `subset` is not asked."""

    def subset(self, captions: Captions, epoch: int, batch: int) -> Tensor:
        """Numbers of the samples of an epoch, int64, as many as its steps take of `batch` each. Every rank is asked as an epoch begins or
        goes on. What was chosen for an epoch survives a kill in `get_extra_state`."""


@runtime_checkable
class HasReleasedNetwork(Protocol):
    def released_network(self) -> nn.Module:
        """The network that a bundle holds or a later phase starts from; without this method it is the attribute `model`."""


def parameter_groups(objective: nn.Module, settings: OptimiserSettings) -> list[ParameterGroup]:
    if isinstance(objective, GroupsParameters):
        return objective.parameter_groups(settings)
    return pretraining_groups(objective, settings.weight_decay)


def released_network(objective: nn.Module) -> nn.Module:
    """Raises AttributeError for an objective that has neither `released` nor `model`."""
    if isinstance(objective, HasReleasedNetwork):
        return objective.released_network()
    model = objective.model
    assert isinstance(model, nn.Module)
    return model
