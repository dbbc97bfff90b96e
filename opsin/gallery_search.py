"""The vectors, the query and the matches of `Client.gallery`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opsin.bulk import Outcomes
from opsin.embedding import Embeddings
from opsin.errors import Failed
from opsin.image_encoding import ImageLike
from opsin.vector_file import FileVectors, read_stats

if TYPE_CHECKING:
    from opsin.results import Model


@dataclass(frozen=True, slots=True)
class Match:
    """An image file, and the cosine similarity of its vector and the query's."""

    path: Path
    cosine: float


def query_arguments(text: str | None, image: ImageLike | None, files: FileVectors) -> dict[str, Any]:
    """Return the arguments of `embed` for a query. An image is embedded with the options of the gallery's images. Raises TypeError."""
    if (text is None) == (image is None):
        raise TypeError("search: give either a text or an image")
    if text is not None:
        return {"texts": text, "model": files.model}
    return {"images": image, "model": files.model, "merge": files.merge or None, "pool": files.pool or None}


def find_matches(files: FileVectors, query: Embeddings, k: int) -> list[Match]:
    return [Match(Path(files.paths[row]), cosine) for row, cosine in files.nearest(query.vectors[0], k)]


def answering_bundle(outcomes: Outcomes[Embeddings]) -> str:
    """Return `name@version` of the bundle that embedded all files of a folder. Raises the first error if no file was embedded, and Failed
    if two bundles answered."""
    models = sorted({f"{found.model}@{found.version}" for found in outcomes.results})
    if not models:
        assert outcomes[0].error is not None
        raise outcomes[0].error
    if len(models) > 1:
        raise Failed(f"gallery: {' and '.join(models)} answered; name one by `model`")
    return models[0]


def file_vectors(outcomes: Outcomes[Embeddings], model: Model, options: Mapping[str, Any]) -> FileVectors:
    """Return the vectors of the files that did not fail. Raises OSError."""
    done = [one for one in outcomes if one.result is not None]
    paths = [one.source for one in done]
    sizes, mtimes = read_stats(paths)
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
