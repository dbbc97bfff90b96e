"""Files that are written completely or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file in the folder of `path`, and move it to `path` in one step when the block ends.

    The file keeps the mode of the one that it replaces, and a link keeps pointing to it. If the block fails, the old file stays. If
    several write at once, the last one wins. Raises OSError.
    """
    target = Path(os.path.realpath(path))
    unfinished = target.with_name(f".{uuid4().hex}.unfinished")
    try:
        yield unfinished
        if target.exists():
            shutil.copymode(target, unfinished)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
