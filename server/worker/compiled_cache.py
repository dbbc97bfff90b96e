"""What `torch.compile` has compiled: kept from one start to the next, within a bound."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Where the compiler of PyTorch looks; an operator may set it."""
MOST_BYTES = 512 * 2**20


def keep_in(folder: Path) -> None:
    """Before anything is compiled in this process."""
    os.environ.setdefault(VARIABLE, str(folder))
    trim()


def trim(most_bytes: int = MOST_BYTES) -> None:
    """Delete the files beyond the bound that were written longest ago: the compiler makes again what it misses."""
    if not (folder := os.environ.get(VARIABLE)):
        return
    files = []
    for path in Path(folder).rglob("*"):
        try:
            stat = path.lstat()
        except OSError:  # another worker has deleted it
            continue
        if not path.is_dir():
            files.append((stat.st_mtime_ns, stat.st_size, path))
    kept = 0
    for _, size, path in sorted(files, reverse=True):
        kept += size
        if kept > most_bytes:
            path.unlink(missing_ok=True)
