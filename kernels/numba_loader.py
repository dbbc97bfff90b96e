"""Loader of the loops of `kernels.numba_loops`: compiled, or read from numba's cache, and compared with the reference."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch

from kernels import reference

ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 3e-2}
"""Largest difference of merged tokens of size 1: the reference rounds every source in bfloat16, the loops once."""


class ReferenceMismatch(RuntimeError):
    """Error for loops that do not compute on this CPU what the reference does."""


def is_installed() -> bool:
    """Return True if numba, the extra `fast`, is installed."""
    return find_spec("numba") is not None


def load_compiled_loops(dtype: torch.dtype, folder: Path | None) -> ModuleType:
    """Load the loops for `ops.compiled_loops`. Compiling takes seconds the first time on a machine; later calls take milliseconds.

    folder: cache of compiled code, or None for numba's own. Only the first call of a process sets it; damaged files there are removed and
    compiled again. Raises RuntimeError if numba is missing, ReferenceMismatch if its loops do not compute what the reference does.
    """
    if not is_installed():
        raise RuntimeError("numba is not installed; it comes with the extra `fast`")
    if folder is not None:
        config = import_module("numba").config
        config.CACHE_DIR = config.CACHE_DIR or str(folder)
        _forget_unsealed(folder)
    loops = import_module("kernels.numba_loops")
    try:
        _check(loops, dtype)
    except ReferenceMismatch:
        raise
    except Exception:
        if folder is None:
            raise
        _forget(folder)  # most likely a file of it is damaged, which numba says in many ways
        _check(loops, dtype)
    if folder is not None:
        _seal(folder)
    return loops


def verify_sealed(folder: Path) -> None:
    """Check that other processes find the loops in `folder`. Raises OSError if a file could not be written."""
    seals = [seal.exists() for _, seal, _ in _cache_files(folder)]
    if not seals or not all(seals):
        raise OSError(f"{folder}: the compiled loops could not be written")


def _cache_files(folder: Path) -> Iterator[tuple[Path, Path, str]]:
    """Yield each file of numba's cache, the file next to it that holds its SHA-256, and its SHA-256 now."""
    for file in folder.rglob("*.nb[ic]"):
        with suppress(OSError):
            yield file, file.with_name(f"{file.name}.sha256"), hashlib.sha256(file.read_bytes()).hexdigest()


def _forget_unsealed(folder: Path) -> None:
    """Remove files that have changed since they were checked: numba runs damaged machine code, which ends the process."""
    for file, seal, digest in _cache_files(folder):
        with suppress(OSError):
            if not seal.exists() or seal.read_text(errors="replace") != digest:
                file.unlink()


def _seal(folder: Path) -> None:
    """Write the SHA-256 of the files that have just been checked. If that fails, they are compiled again the next time."""
    for _, seal, digest in _cache_files(folder):
        with suppress(OSError):
            if not seal.exists() or seal.read_text(errors="replace") != digest:
                seal.write_text(digest)


def _forget(folder: Path) -> None:
    """Remove what numba keeps; the folders stay, as other processes may be writing there."""
    for file in folder.rglob("*.nb[ic]"):
        with suppress(OSError):
            file.unlink()


def _check(loops: ModuleType, dtype: torch.dtype) -> None:
    with torch.inference_mode():
        for protected in (0, 1, 2):
            _compare(loops, dtype, protected)


def _compare(loops: ModuleType, dtype: torch.dtype, protected: int) -> None:
    """Compare the loops with the reference on cosines without rounding, many of them equal. Raises ReferenceMismatch."""
    generator = torch.Generator().manual_seed(protected)
    keys = (torch.randint(0, 2, (2, 37, 3, 1, 16), generator=generator) * 2 - 1).to(dtype).expand(-1, -1, -1, 3, -1)
    keys = keys.permute(2, 0, 3, 1, 4)[1]  # (B, H, T, D), heads alike
    x, residual = (torch.randn(2, 37, 24, generator=generator).to(dtype) for _ in range(2))
    size = torch.randint(1, 9, (2, 37, 1), generator=generator).float()
    expected, found = reference.bipartite_match(keys.sum(dim=1), 9, protected), loops.bipartite_match(keys, 9, protected)
    same = found is not None and all(torch.equal(getattr(found, part), getattr(expected, part)) for part in ("unmerged", "src", "dst"))
    merged, merged_size = reference.merge(x + residual, size, expected)
    other, other_size = loops.merge(x, size, expected, residual)
    near = torch.allclose(other.float(), merged.float(), rtol=ROUNDING[dtype], atol=ROUNDING[dtype])
    if not (same and near and torch.equal(other_size, merged_size)):
        raise ReferenceMismatch("the loops that numba compiled do not compute on this CPU what the reference does")
