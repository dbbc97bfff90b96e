"""The vectors of a folder's images, the question that is asked of them, and what matches it: the rules of `Client.gallery`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opsin.bulk import Outcomes
from opsin.embedding import Embeddings
from opsin.errors import Failed
from opsin.image_encoding import Picture
from opsin.vector_file import FileVectors, stat_of

if TYPE_CHECKING:
    from opsin.results import Model


@dataclass(frozen=True, slots=True)
class Match:
    """An image file and the cosine of its vector with that of the question."""

    path: Path
    cosine: float


def question(text: str | None, image: Picture | None, files: FileVectors) -> dict[str, Any]:
    """Arguments of `embed` for what is searched: an image is embedded as those of the files were. Raises TypeError."""
    if (text is None) == (image is None):
        raise TypeError("search: give either a text or an image")
    if text is not None:
        return {"texts": text, "model": files.model}
    return {"images": image, "model": files.model, "merge": files.merge or None, "pool": files.pool or None}


def matches(files: FileVectors, found: Embeddings, k: int) -> list[Match]:
    return [Match(Path(files.paths[row]), cosine) for row, cosine in files.nearest(found.vectors[0], k)]


def answering(outcomes: Outcomes[Embeddings]) -> str:
    """`name@version` of the bundle that answered all files of a folder. Raises the first error where none was, Failed where two were."""
    models = sorted({f"{found.model}@{found.version}" for found in outcomes.results})
    if not models:
        assert outcomes[0].error is not None
        raise outcomes[0].error
    if len(models) > 1:
        raise Failed(f"gallery: {' and '.join(models)} answered; name one by `model`")
    return models[0]


def file_vectors(outcomes: Outcomes[Embeddings], model: Model, options: Mapping[str, Any]) -> FileVectors:
    """The vectors of those files of a folder that did not fail. Raises OSError."""
    done = [one for one in outcomes if one.result is not None]
    paths = [one.source for one in done]
    sizes, mtimes = stat_of(paths)
    return FileVectors(
        vectors=np.concatenate([one.result.vectors for one in done if one.result is not None]),
        paths=np.array([str(path) for path in paths]),
        sizes=sizes,
        mtimes=mtimes,
        model=model.id,
        digest=model.digest,
        merge=str(options.get("merge") or ""),
        pool=str(options.get("pool") or ""),
    )
