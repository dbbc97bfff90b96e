"""What objectives share: their settings in a recipe, and what they ask of a batch.

An objective is a module that owns the networks it trains, the one that becomes a bundle as `model`. `forward(batch)` gives `loss`, a scalar,
and detached metrics. On several ranks each value is the rank's term of a mean over ranks (`training.reductions`).

A batch maps names to tensors whose first dimension is the sample: `draw` int64 (B,), from which all randomness of a sample comes
(`training.draws`), and, as each objective says, `images`, `clips`, `audio`, `labels`, `tokens`, …
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from models import bundle, loading


class ObjectiveError(Exception):
    """An objective cannot be built, or cannot use its batch; the message names the field."""


class Settings(BaseModel):
    """An `objective` in a recipe; each has a `kind` of its own. Unknown fields are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Decay(Protocol):
    """The part of an optimiser's settings that parameter groups need."""

    @property
    def weight_decay(self) -> float: ...


def need(batch: Mapping[str, Tensor], name: str) -> Tensor:
    """Raises ObjectiveError that names what is missing."""
    if name not in batch:
        raise ObjectiveError(f"{name}: the objective needs it, and the data gives {', '.join(sorted(batch))}")
    return batch[name]


def expect(kind: str, model: nn.Module, *classes: type[nn.Module]) -> Any:
    """The model, which is of one of the classes. Raises ObjectiveError for others."""
    if not isinstance(model, classes):
        known = ", ".join(each.__name__ for each in classes)
        raise ObjectiveError(f"model: the objective {kind} trains {known}, not {type(model).__name__}")
    return model


def load_teacher(path: Path) -> nn.Module:
    """A bundle's network, frozen, in evaluation mode. Raises ObjectiveError."""
    try:
        return loading.load(bundle.read(path)).model
    except bundle.BundleError as error:
        raise ObjectiveError(f"teacher: {error}") from error
