"""Files that commands write. They are checked before work that may take minutes, so that it is not lost in the end."""

from __future__ import annotations

import os
from pathlib import Path

from opsin.atomic_write import atomic_write
from opsin.cli.shared.errors import CommandError, UsageError

MEDIA_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".mp4", ".mov", ".webm", ".mkv", ".avi"})


def check_writable(*paths: Path | None) -> None:
    """Raise UsageError for a file that cannot be written, or that is named twice."""
    resolved = [path.resolve() for path in paths if path is not None]
    for path in paths:
        if path is None:
            continue
        if resolved.count(path.resolve()) > 1:
            raise UsageError(f"{path}: used for two outputs; choose different files")
        if path.is_dir():
            raise UsageError(f"{path}: cannot be written (it is a folder)")
        if not path.parent.is_dir():
            raise UsageError(f"{path}: cannot be written (there is no folder {path.parent})")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise UsageError(f"{path}: cannot be written (no permission)")


def check_suffix(path: Path | None, suffix: str) -> None:
    """Raise UsageError for a suffix of another media type."""
    if path is not None and path.suffix.lower() in MEDIA_SUFFIXES - {suffix}:
        raise UsageError(f"{path}: the file's name must end in {suffix}")


def write(path: Path, content: bytes) -> None:
    """Write a file. If that fails, the old file stays, if its folder is writable. Raises CommandError."""
    try:
        if (path.exists() and not path.is_file()) or not os.access(path.resolve().parent, os.W_OK):  # such as a pipe
            path.write_bytes(content)
            return
        with atomic_write(path) as unfinished:
            unfinished.write_bytes(content)
    except OSError as error:
        raise CommandError(f"{path}: cannot be written ({error.strerror})") from error
