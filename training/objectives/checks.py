"""Checks of objectives on their networks and batches, and the networks that teach them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from models import bundle, loading
from training.errors import DataError
from training.objectives.protocols import Batch


def require_tensor(batch: Batch, name: str) -> Tensor:
    """Raises DataError that names what is missing."""
    if name not in batch:
        raise DataError(f"data.kind: the objective needs {name} of every sample, and the data gives {', '.join(sorted(batch))}")
    return batch[name]


def require_model(kind: str, model: nn.Module, *classes: type[nn.Module]) -> Any:
    """The model, which is of one of the classes. Raises ValueError for others."""
    if not isinstance(model, classes):
        accepted = ", ".join(each.__name__ for each in classes)
        raise ValueError(f"model.architecture: the objective {kind} trains {accepted}, not {type(model).__name__}")
    return model


def load_teacher(path: Path) -> nn.Module:
    """A bundle's network, frozen, in evaluation mode. Raises ValueError."""
    try:
        return loading.load(bundle.read(path)).model
    except bundle.BundleError as error:
        raise ValueError(f"objective.teacher: {error}") from error
