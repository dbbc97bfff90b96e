"""Files that commands write. They are looked at before work that may take minutes, so that it is not lost in the end."""

from __future__ import annotations

import os
from pathlib import Path

from opsin.atomic_write import atomic_write
from opsin.cli.shared.errors import CommandError, UsageError

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".mp4", ".mov", ".webm", ".mkv", ".avi"})


def check(*paths: Path | None) -> None:
    """Raises UsageError for a file that could not be written, or that is named twice."""
    named = [path.resolve() for path in paths if path is not None]
    for path in paths:
        if path is None:
            continue
        if named.count(path.resolve()) > 1:
            raise UsageError(f"{path}: named for two outputs; name another file for one of them")
        if path.is_dir():
            raise UsageError(f"{path}: cannot be written (it is a folder)")
        if not path.parent.is_dir():
            raise UsageError(f"{path}: cannot be written (there is no folder {path.parent})")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise UsageError(f"{path}: cannot be written (no permission)")


def check_suffix(path: Path | None, suffix: str) -> None:
    """Raises UsageError for a name that promises a picture of another kind."""
    if path is not None and path.suffix.lower() in PICTURES - {suffix}:
        raise UsageError(f"{path}: the file's name must end in {suffix}")


def write(path: Path, content: bytes) -> None:
    """As a whole: if it fails, the file that was there before is there still, where its folder can be written. Raises Failure."""
    try:
        if (path.exists() and not path.is_file()) or not os.access(path.resolve().parent, os.W_OK):  # such as a pipe
            path.write_bytes(content)
            return
        with atomic_write(path) as unfinished:
            unfinished.write_bytes(content)
    except OSError as error:
        raise CommandError(f"{path}: cannot be written ({error.strerror})") from error
