"""Files of a bundle: their length and SHA-256, and folders that are replaced in one step. Imports no torch."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.bundle_schema import FileDigest


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digest(path: Path) -> FileDigest:
    """Return length and SHA-256 of a file, for `bundle.json`."""
    return FileDigest(sha256=sha256_of(path), bytes=path.stat().st_size)


def digest_mismatch(path: Path, expected: FileDigest, source: str) -> str | None:
    """Return one sentence why a file is not the expected one; None if it is. source: the file that declares what is expected."""
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"{path}: missing ({error.strerror})"
    if not path.is_file():
        return f"{path}: is not an ordinary file"
    if size != expected.bytes:
        return f"{path}: {size} bytes where {source} says {expected.bytes}: truncated or another file"
    try:
        sha256 = sha256_of(path)
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})"
    if sha256 != expected.sha256:
        return f"{path}: its SHA-256 is not the one in {source}: damaged or another file"
    return None


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Hard-link a file, since weights may have gigabytes; copy it if the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file in one step; it keeps its mode. Raises OSError; then the old one remains."""
    descriptor, name = tempfile.mkstemp(prefix=".writing-", dir=path.parent)
    written = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        written.chmod(path.stat().st_mode & 0o777)
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)


@contextmanager
def replace_folder(target: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield an empty folder next to `target` to be filled, then move it to `target` in one step, replacing what is there. Raises OSError if
    `replace` is False and another process has created `target`, which remains."""
    staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=target.parent))
    try:
        yield staging
        for written in filter(Path.is_file, staging.rglob("*")):
            with written.open("rb") as file:
                os.fsync(file.fileno())
        staging.chmod(0o755)
        if replace and target.exists():
            retired = Path(tempfile.mkdtemp(prefix=".retired-", dir=target.parent))
            target.rename(retired / target.name)
            staging.rename(target)
            shutil.rmtree(retired)
        else:
            staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
