"""Files that are written as a whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a file to be written beside `path`, or what that is a link to, and put it there in one step, with the mode of the file before.

    A failure leaves the file before. Of several that write at once the last wins. Raises OSError."""
    target = Path(os.path.realpath(path))
    unfinished = target.with_name(f".{uuid4().hex}.unfinished")
    try:
        yield unfinished
        if target.exists():
            shutil.copymode(target, unfinished)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
