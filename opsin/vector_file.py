"""Vectors of image files with where they come from, in memory and in an NPZ file, and the exact search in them."""

from __future__ import annotations

import lzma
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from opsin.atomic_write import replacing
from opsin.errors import Refused

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opsin.results import Model

WORDS = ("model", "digest", "merge", "pool")
ARRAYS = {"vectors": ("f", 2), "paths": ("U", 1), "sizes": ("i", 1), "mtimes": ("i", 1)}
"""Kind and number of dimensions of each."""
UNREADABLE = (TypeError, ValueError, LookupError, AttributeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
"""Errors of NumPy where a file is something else, damaged or encrypted, or packed in a way that is not known here."""


@dataclass(frozen=True, slots=True, eq=False)
class FileVectors:
    """A vector for each of some image files, all from one bundle."""

    vectors: NDArray[np.float32]
    """float32 (n, dim), of unit length."""
    paths: NDArray[np.str_]
    """(n,), the files as they were named."""
    sizes: NDArray[np.int64]
    """(n,), bytes of the files when they were read."""
    mtimes: NDArray[np.int64]
    """(n,), when they were written last, in nanoseconds since 1970."""
    model: str
    """`name@version` of the bundle."""
    digest: str
    """SHA-256 of the bundle's content."""
    merge: str
    """As it was asked for; empty: the service's default."""
    pool: str
    """As it was asked for; empty: the bundle's own."""

    def __len__(self) -> int:
        return len(self.vectors)

    def save(self, path: Path) -> None:
        """Write the file, or what it is a link to, as a whole: readers see the old one or the new one, and of several that are written at
        once the last. Raises OSError."""
        content: dict[str, Any] = {name: np.asarray(getattr(self, name)) for name in (*ARRAYS, *WORDS)}
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, **content)
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises OSError, and ValueError for a file of something else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays: dict[str, Any] = {name: file[name] for name in ARRAYS}
                words: dict[str, Any] = {name: str(file[name]) for name in WORDS}
        except UNREADABLE as error:
            raise ValueError(f"{path}: no file of vectors that `opsin embed` has written ({error})") from error
        _check(path, arrays)
        return cls(**arrays, **words)

    def check(self, model: Model) -> None:
        """Raises Refused where the service has another content of the bundle now: its vectors mean other things."""
        if model.digest != self.digest:
            raise Refused(
                f"the vectors are of {self.model} with digest {self.digest[:12]}, and the service has {model.id} with digest "
                f"{model.digest[:12]} now; embed the files again",
                status=409,
                title="Another bundle",
                field="model",
            )

    def nearest(self, query: NDArray[np.float32], count: int) -> list[tuple[int, float]]:
        """Rows with the largest cosines and these, best first. query: (dim,), of unit length. Raises ValueError."""
        if count < 1:
            raise ValueError(f"k: {count}; it must be at least 1")
        cosines = self.vectors @ query  # (n,), exact
        kept = np.argpartition(-cosines, count - 1)[:count] if count < len(cosines) else np.arange(len(cosines))
        best = kept[np.lexsort((kept, -cosines[kept]))]
        return [(int(row), float(cosines[row])) for row in best]


def stat_of(paths: Sequence[Path]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sizes in bytes and times of the last change in nanoseconds, (n,) each. Raises OSError."""
    stats = [path.stat() for path in paths]
    return np.array([one.st_size for one in stats], np.int64), np.array([mtime_of(one) for one in stats], np.int64)


def mtime_of(stat: os.stat_result) -> int:
    """Nanoseconds since 1970 of the last change; of one in the years beyond 1677 to 2262, what int64 holds of them."""
    return max(-(2**63), min(stat.st_mtime_ns, 2**63 - 1))


def _check(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    rows = len(arrays["paths"]) if arrays["paths"].ndim else 0
    for name, (kind, dimensions) in ARRAYS.items():
        array = arrays[name]
        if array.dtype.kind != kind or array.ndim != dimensions or len(array) != rows:
            raise ValueError(f"{path}: no file of vectors that `opsin embed` has written ({name}: {array.dtype} {array.shape})")
    if arrays["vectors"].dtype != np.float32:
        raise ValueError(f"{path}: vectors are {arrays['vectors'].dtype}, and float32 is read")
