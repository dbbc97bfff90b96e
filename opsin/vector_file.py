"""Vectors of image files with their paths and their bundle, in memory and in an NPZ file, and exact search in them.

`Client.gallery` and the commands `opsin embed` and `opsin search` share it.
"""

from __future__ import annotations

import lzma
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from opsin.atomic_write import atomic_write
from opsin.bulk import Outcomes
from opsin.embedding import Embeddings
from opsin.errors import Failed, Refused
from opsin.image_encoding import ImageLike

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opsin.results import Model

METADATA = ("model", "digest", "merge", "pool")
ARRAYS = {"vectors": ("f", 2), "paths": ("U", 1), "sizes": ("i", 1), "mtimes": ("i", 1)}
"""Name of each array → its NumPy kind and number of dimensions."""
READ_ERRORS = (TypeError, ValueError, LookupError, AttributeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
"""Errors of NumPy for files of another kind, damaged or encrypted ones, and unknown kinds of compression."""


@dataclass(frozen=True, slots=True, eq=False)
class FileVectors:
    """A vector for each of some image files, all from one bundle."""

    vectors: NDArray[np.float32]
    """float32 (n, dim), of unit length."""
    paths: NDArray[np.str_]
    """(n,): paths of the files, as the caller wrote them."""
    sizes: NDArray[np.int64]
    """(n,): sizes of the files in bytes when they were read."""
    mtimes: NDArray[np.int64]
    """(n,): modification times of the files in nanoseconds since 1970."""
    model: str
    """`name@version` of the bundle."""
    digest: str
    """SHA-256 of the bundle's content."""
    merge: str
    """The requested token merging; empty: the service's default."""
    pool: str
    """The requested pooling; empty: the bundle's default."""

    def __len__(self) -> int:
        return len(self.vectors)

    def save(self, path: Path) -> None:
        """Write the file, or the target of a link, atomically: readers see either the old file or the new one. Raises OSError."""
        content: dict[str, Any] = {name: np.asarray(getattr(self, name)) for name in (*ARRAYS, *METADATA)}
        with atomic_write(path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, **content)
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that `save` wrote. Raises OSError, and ValueError for any other file."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays: dict[str, Any] = {name: file[name] for name in ARRAYS}
                metadata: dict[str, Any] = {name: str(file[name]) for name in METADATA}
        except READ_ERRORS as error:
            raise ValueError(f"{path}: not a file of vectors written by `opsin embed` ({error})") from error
        _check(path, arrays)
        return cls(**arrays, **metadata)

    def check(self, model: Model) -> None:
        """Raise Refused if the bundle's content has changed: its vectors are not comparable with these."""
        if model.digest != self.digest:
            raise Refused(
                f"the vectors are of {self.model} with digest {self.digest[:12]}, and the service has {model.id} with digest "
                f"{model.digest[:12]} now; embed the files again",
                status=409,
                title="Another bundle",
                field="model",
            )

    def nearest(self, query: NDArray[np.float32], count: int) -> list[Match]:
        """Return the files with the largest cosines, best first. query: (dim,), of unit length. Raises ValueError."""
        if count < 1:
            raise ValueError(f"k: {count}; it must be at least 1")
        cosines = self.vectors @ query  # (n,), exact
        candidates = np.argpartition(-cosines, count - 1)[:count] if count < len(cosines) else np.arange(len(cosines))
        best = candidates[np.lexsort((candidates, -cosines[candidates]))]
        return [Match(Path(self.paths[row]), float(cosines[row])) for row in best]


def clamp_mtime(stat: os.stat_result) -> int:
    """Return the modification time in nanoseconds since 1970, limited to the range of int64: the years 1677 to 2262."""
    return max(-(2**63), min(stat.st_mtime_ns, 2**63 - 1))


def _check(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    rows = len(arrays["paths"]) if arrays["paths"].ndim else 0
    for name, (kind, dimensions) in ARRAYS.items():
        array = arrays[name]
        if array.dtype.kind != kind or array.ndim != dimensions or len(array) != rows:
            raise ValueError(f"{path}: not a file of vectors written by `opsin embed` ({name}: {array.dtype} {array.shape})")
    if arrays["vectors"].dtype != np.float32:
        raise ValueError(f"{path}: vectors are {arrays['vectors'].dtype}; they must be float32")


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
    stats = [one.source.stat() for one in done]
    return FileVectors(
        vectors=np.concatenate([one.result.vectors for one in done if one.result is not None]),
        paths=np.array([str(one.source) for one in done]),
        sizes=np.array([one.st_size for one in stats], np.int64),
        mtimes=np.array([clamp_mtime(one) for one in stats], np.int64),
        model=model.id,
        digest=model.digest,
        merge=str(options.get("merge") or ""),
        pool=str(options.get("pool") or ""),
    )
