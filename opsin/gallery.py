# Derived from async_gallery.py by `make client`: change that file.
"""A folder of images that can be searched by text or image: `Client.gallery`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from opsin.bulk import Outcome
from opsin.embedding import Embeddings
from opsin.image_encoding import ImageLike
from opsin.vector_file import FileVectors, Match, query_arguments

if TYPE_CHECKING:
    from opsin.results import Model


@dataclass(frozen=True, slots=True)
class Gallery:
    """The images of a folder, embedded once. The vectors stay in this process."""

    files: FileVectors
    failures: tuple[Outcome[Embeddings], ...]
    """Files that have no vector, with their errors."""
    embed: Callable[..., Embeddings]
    model: Callable[[str], Model]

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return f"<{type(self).__name__}: {len(self):,} images by {self.files.model}{failed}>"

    def search(self, text: str | None = None, *, image: ImageLike | None = None, k: int = 10) -> list[Match]:
        """Return the k files that match a text or an image best, by exact cosine similarity, best first.

        Raises OpsinError; Refused (409) if the bundle's content has changed since the folder was embedded.
        """
        query = self.embed(**query_arguments(text, image, self.files))
        self.files.check(self.model(self.files.model))
        return self.files.nearest(query.vectors[0], k)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vectors to an NPZ file, which `opsin search` reads."""
        self.files.save(Path(path))
