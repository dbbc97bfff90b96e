"""Files that commands write. They are looked at before work that may take minutes, so that it is not lost in the end."""

from __future__ import annotations

import os
from pathlib import Path

from opsin.cli.exits import Failure, Misuse

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".mp4", ".mov", ".webm", ".mkv", ".avi"})


def check(*paths: Path | None) -> None:
    """Raises Misuse for a file that could not be written."""
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            raise Misuse(f"{path}: cannot be written (it is a folder)")
        if not path.parent.is_dir():
            raise Misuse(f"{path}: cannot be written (there is no folder {path.parent})")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise Misuse(f"{path}: cannot be written (no permission)")


def check_suffix(path: Path | None, suffix: str) -> None:
    """Raises Misuse for a name that promises a picture of another kind."""
    if path is not None and path.suffix.lower() in PICTURES - {suffix}:
        raise Misuse(f"{path}: the file's name must end in {suffix}")


def write(path: Path, content: bytes) -> None:
    """Leaves no part of a file behind. Raises Failure."""
    try:
        file = path.open("wb")
        try:
            with file:
                file.write(content)
        except BaseException:
            if path.is_file() and not path.is_symlink():  # such as /dev/stdout
                path.unlink()
            raise
    except OSError as error:
        raise Failure(f"{path}: cannot be written ({error.strerror})") from error
