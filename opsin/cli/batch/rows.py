"""The rows of `opsin batch`: the lines of a file or the files of a folder, each of which becomes a request."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opsin.cli.shared import image_files
from opsin.cli.shared.errors import UsageError

if TYPE_CHECKING:
    from opsin.api_request import ApiRequest

SUFFIXES: Mapping[str, frozenset[str]] = {
    "image": image_files.IMAGES,
    "video": frozenset({".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv"}),
    "audio": frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus", ".aac", ".m4a", ".aif", ".aiff", ".caf"}),
}
"""Suffixes of the files of a folder, by their kind. A part that takes them has the name of the kind."""
RESERVED = {"priority": "batches have the priority low"}
"""Names that a row may not use → why."""


@dataclass(frozen=True)
class BatchRow:
    """`given`: parts and options by name."""

    index: int
    id: Any
    given: Mapping[str, Any]

    @property
    def names(self) -> frozenset[str]:
        """Return what the row decides itself: its names as they stand there and as a form has them."""
        return frozenset((*self.given, *(name for name, _ in _iter_named_values(self.given))))


@dataclass(frozen=True)
class Rows:
    """The rows of one source, which are read anew each time: millions of lines take no memory, and of a folder only the paths do."""

    source: Path
    """A file of JSON lines, or a folder."""
    parts: Mapping[str, str]
    """Name of a part → its kind."""
    max_bytes: int
    """The service takes no file that is longer."""
    without: frozenset[Path]
    """Files and folders, resolved, that are no rows, and neither is what lies in them: results go there."""

    def __iter__(self) -> Iterator[BatchRow]:
        """Raises UsageError for a line that is no row."""
        if self.source.is_dir():
            yield from (BatchRow(index, None, given) for index, given in enumerate(self._files()))
            return
        for index, (number, line) in enumerate(self._lines()):
            given = _read(line, f"{self.source}: line {number}")
            yield BatchRow(index, given.pop("id", None), given)

    def survey(self) -> tuple[int, str]:
        """Their number, and the SHA-256 of what they say and of the sizes of their files. Raises UsageError."""
        digest, count = hashlib.sha256(), 0
        for row in self:
            sizes = [_size(path) for _, path in self._paths(row)]
            digest.update(json.dumps([row.id, row.given, sizes], sort_keys=True).encode() + b"\n")
            count += 1
        if not count:
            suffixes = ", ".join(sorted(suffix for kind in self.parts.values() for suffix in SUFFIXES.get(kind, ())))
            known = f"; files are known by their suffixes, {suffixes}" if self.source.is_dir() else ""
            raise UsageError(f"{self.source}: no row in it{known}")
        return count, digest.hexdigest()

    def call(self, row: BatchRow, task: str, options: Mapping[str, str | list[str]], accept: str | None) -> ApiRequest:
        """The request of a row. What it says itself comes before the options of all. Raises OSError, ValueError."""
        from urllib.parse import quote

        from opsin.api_request import ApiRequest

        files: dict[str, list[bytes]] = {}
        for name, path in self._paths(row):
            files.setdefault(name, []).append(_content(path, self.max_bytes))
        texts = {name: [value] if isinstance(value, str) else [*value] for name, value in options.items() if name not in row.names}
        for name, values in _iter_named_values(row.given):
            if not values:
                raise ValueError(f"{name}: an empty list; leave it out")
            if name not in files:
                texts.setdefault(name, []).extend(_text(value) for value in values)
        headers = {} if accept is None else {"Accept": accept}
        return ApiRequest("POST", f"/v1/{quote(task, safe='')}", query={"priority": "low"}, headers=headers, parts=files, form=texts)

    def _paths(self, row: BatchRow) -> Iterator[tuple[str, Path]]:
        """The parts of a row that are files."""
        from opsin.inpainting import MASK_EXPRESSIONS

        folder = self.source if self.source.is_dir() else self.source.parent
        for name, values in _iter_named_values(row.given):
            if self.parts.get(name, "text") == "text":
                continue
            for value in values:
                path = folder / str(value)
                if name != "mask" or not str(value).startswith(MASK_EXPRESSIONS) or path.is_file():
                    yield name, path

    def _lines(self) -> Iterator[tuple[int, str]]:
        try:
            with self.source.open(encoding="utf-8-sig") as lines:
                yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())
        except OSError as error:
            raise UsageError(f"{self.source}: cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{self.source}: not UTF-8 ({error.reason})") from error

    def _files(self) -> Iterator[Mapping[str, str]]:
        kinds = {suffix: kind for kind in self.parts.values() for suffix in SUFFIXES.get(kind, ())}
        for path in sorted(self.source.rglob("*")):
            inner = path.relative_to(self.source)
            hidden = any(part.startswith(".") for part in inner.parts)
            if not hidden and path.suffix.lower() in kinds and path.is_file():
                whole = path.resolve()
                if self.without.isdisjoint((whole, *whole.parents)):
                    yield {kinds[path.suffix.lower()]: str(inner)}


def _read(line: str, where: str) -> dict[str, Any]:
    """Raises UsageError."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise UsageError(f'{where}: write an object such as {{"image": "cat.jpg", "top_k": 3}}')
    for name, value in row.items():
        if name in RESERVED:
            raise UsageError(f"{where}: {name}: {RESERVED[name]}; leave it out")
        if any(isinstance(one, dict | list) for one in (value if isinstance(value, list) else [value])):
            raise UsageError(f"{where}: {name}: write a text, a number, true or false, or a list of these")
    return row


def _iter_named_values(given: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[Any]]]:
    """Names as a form has them, with their values: a list may stand under a plural, as in JSON bodies."""
    for name, value in given.items():
        if isinstance(value, list):
            yield name.removesuffix("s"), value
        elif value is not None:
            yield name, [value]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _content(path: Path, most: int) -> bytes:
    """Raises OSError, and ValueError for a name with a NUL or a lone surrogate, and for what has no end or more than `most` bytes."""
    try:
        status = path.stat()
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: no name of a file ({error})") from error
    if stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{path}: a folder; name a file")
    if not stat.S_ISREG(status.st_mode):  # the end of a pipe or a device may never come
        raise ValueError(f"{path}: no regular file")
    if status.st_size > most:
        raise ValueError(f"{path}: {status.st_size} bytes; the service takes {most} at most")
    with path.open("rb") as file:
        return file.read(most + 1)  # the service refuses one that has grown meanwhile


def _size(path: Path) -> int:
    """-1: there is no such file, or its name can be none. Its row fails, and the others do not."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return -1
