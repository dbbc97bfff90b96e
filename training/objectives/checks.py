"""Checks of objectives on their networks and batches, and the networks that teach them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from models import bundle, loading
from training.errors import DataError
from training.objectives.protocols import Batch


def require_tensor(batch: Batch, name: str) -> Tensor:
    """Return a tensor of the batch, of any shape. Raises DataError if it is missing."""
    if name not in batch:
        raise DataError(f"data.kind: the objective needs {name} of every sample, and the data gives {', '.join(sorted(batch))}")
    return batch[name]


def require_model(kind: str, model: nn.Module, *classes: type[nn.Module]) -> Any:
    """Return the model if it is of one of the classes. Raises ValueError otherwise."""
    if not isinstance(model, classes):
        accepted = ", ".join(each.__name__ for each in classes)
        raise ValueError(f"model.architecture: the objective {kind} trains {accepted}, not {type(model).__name__}")
    return model


def load_teacher(path: Path) -> nn.Module:
    """Load a bundle's network, frozen and in evaluation mode. Raises ValueError."""
    try:
        return loading.load(bundle.read(path)).model
    except bundle.BundleError as error:
        raise ValueError(f"objective.teacher: {error}") from error
