"""A recorded checkpoint as a worker holds it, asked for vectors in the words of a job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.bundle_schema import Task
from models.checkpoints import import_checkpoint
from models.loading import LoadedModel, load
from tests.golden.case import Case
from tests.harness.bundles import sealed

Arrays = dict[str, NDArray[Any]]


def loaded(case: Case, root: Path, family: str, settings: Mapping[str, str], task: Task | None = None) -> LoadedModel:
    """Imported, written as a bundle that normalises nothing, and loaded. task: another one than its family's."""
    plain = {"mean": "0,0,0", "std": "1,1,1"}
    file = case.checkpoint if case.checkpoint.is_file() else case.folder
    spec, weights = import_checkpoint(
        file, family=family, labels=None, overrides={**settings, **plain}, name="test", version="1", license="CC0-1.0"
    )
    if task is not None:
        spec = spec.model_copy(update={"task": task, "labels": []})
    return load(sealed(root, spec, weights))


def pixels_of(images: Tensor) -> Arrays:
    """Recorded images (B, 3, S, S) are normalised already: as pixels that normalising by `loaded` turns into them."""
    return {"pixels": (images.permute(0, 2, 3, 1) * 255).numpy()}


def random_pixels(count: int, size: int) -> Arrays:
    """Bytes, as a job carries them."""
    return {"pixels": np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)}


def cosines(got: NDArray[Any] | Tensor, expected: NDArray[Any] | Tensor) -> NDArray[np.float64]:
    """Row by row, in float64."""
    one, other = (np.asarray(x.detach() if isinstance(x, Tensor) else x, np.float64) for x in (got, expected))
    assert one.shape == other.shape
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    result: NDArray[np.float64] = (one * other).sum(axis=-1) / lengths
    return result


def are_units(vectors: NDArray[Any]) -> bool:
    """Float32 of length 1 within 1e-6."""
    return vectors.dtype == np.float32 and bool(np.allclose(np.linalg.norm(vectors.astype(np.float64), axis=-1), 1, atol=1e-6, rtol=0))


def zeroed(model: LoadedModel, *names: str) -> None:
    """Fill parameters with zeros."""
    with torch.no_grad():
        for name in names:
            model.model.get_parameter(name).zero_()
