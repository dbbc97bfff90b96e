"""Files of a bundle: their length and SHA-256, and how a folder of them comes to its place in one step. Imports no torch."""

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
    """Length and SHA-256 of a file, as `bundle.json` holds them."""
    return FileDigest(sha256=sha256_of(path), bytes=path.stat().st_size)


def digest_mismatch(path: Path, expected: FileDigest, source: str) -> str | None:
    """Say in one sentence why a file is not the expected one; None if it is. source: the file that says what is expected."""
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"{path}: missing ({error.strerror})"
    if not path.is_file():
        return f"{path}: is no ordinary file"
    if size != expected.bytes:
        return f"{path}: {size} bytes where {source} says {expected.bytes}: truncated or another file"
    try:
        found = sha256_of(path)
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})"
    if found != expected.sha256:
        return f"{path}: its SHA-256 is not the one in {source}: damaged or another file"
    return None


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a file a second name, for gigabytes of weights need not be copied; a copy where the file system knows no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file in one step; it keeps its mode. Raises OSError, and leaves the old one."""
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
    """Give an empty folder beside `target` to be filled, then put it there in one step, replacing what is there. If not `replace`, what
    somebody else has put there meanwhile stays, and OSError is raised."""
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
