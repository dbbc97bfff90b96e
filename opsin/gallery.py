"""A folder of images that can be searched by text or image: `Client.gallery`."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opsin.embedding import Embeddings
from opsin.errors import Failed
from opsin.mapping import Outcome, Outcomes
from opsin.pictures import Picture
from opsin.vector_file import FileVectors, stat_of

if TYPE_CHECKING:
    from opsin.results import Model


@dataclass(frozen=True, slots=True)
class Match:
    """An image file and the cosine of its vector with that of the question."""

    path: Path
    cosine: float


@dataclass(frozen=True, slots=True)
class Gallery:
    """Images of a folder, embedded once; the vectors stay in this process."""

    files: FileVectors
    failures: tuple[Outcome[Embeddings], ...]
    """Files that have no vector, with their errors."""
    embed: Callable[..., Embeddings]
    model: Callable[[str], Model]

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        return _described(self)

    def search(self, text: str | None = None, *, image: Picture | None = None, k: int = 10) -> list[Match]:
        """The k files that fit a text best, or are most like an image: exact cosines, best first.

        Raises OpsinError; Refused (409) where the bundle has another content than when the folder was embedded."""
        found = self.embed(**question(text, image, self.files))
        self.files.check(self.model(self.files.model))
        return matches(self.files, found, k)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vectors to an NPZ file, which `opsin search` reads."""
        self.files.save(Path(path))


@dataclass(frozen=True, slots=True)
class AsyncGallery:
    """`Gallery` for asyncio."""

    files: FileVectors
    failures: tuple[Outcome[Embeddings], ...]
    embed: Callable[..., Awaitable[Embeddings]]
    model: Callable[[str], Awaitable[Model]]

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        return _described(self)

    async def search(self, text: str | None = None, *, image: Picture | None = None, k: int = 10) -> list[Match]:
        """See `Gallery.search`."""
        found = await self.embed(**question(text, image, self.files))
        self.files.check(await self.model(self.files.model))
        return matches(self.files, found, k)

    def save(self, path: str | os.PathLike[str]) -> None:
        """See `Gallery.save`."""
        self.files.save(Path(path))


def _described(gallery: Gallery | AsyncGallery) -> str:
    failed = f", {len(gallery.failures)} failed" if gallery.failures else ""
    return f"<{type(gallery).__name__}: {len(gallery):,} images by {gallery.files.model}{failed}>"


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
