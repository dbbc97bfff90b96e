"""What `torch.compile` has compiled: kept from one start to the next, within a bound."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Where the compiler of PyTorch looks. A folder that an operator has set is his: nothing is deleted there."""
FOLDER = "inductor"
"""Ours, in `OPSIN_CACHE`."""
MOST_BYTES = 512 * 2**20


def keep_in(folder: Path) -> None:
    """Before anything is compiled in this process."""
    os.environ.setdefault(VARIABLE, str(folder))
    trim(folder)


def trim(folder: Path, most_bytes: int | None = None) -> None:
    """Delete the files beyond the bound that were written longest ago: the compiler makes again what it misses."""
    files = []
    for path in folder.rglob("*"):
        try:
            stat = path.lstat()
        except OSError:  # another worker has deleted it
            continue
        if not path.is_dir():
            files.append((stat.st_mtime_ns, stat.st_size, path))
    kept = 0
    for _, size, path in sorted(files, reverse=True):
        kept += size
        if kept > (MOST_BYTES if most_bytes is None else most_bytes):
            path.unlink(missing_ok=True)
