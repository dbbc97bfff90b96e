"""The rows of `opsin batch`: the lines of a file or the files of a folder. Each becomes a request."""

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

KIND_SUFFIXES: Mapping[str, frozenset[str]] = {
    "image": image_files.IMAGE_SUFFIXES,
    "video": frozenset({".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv"}),
    "audio": frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus", ".aac", ".m4a", ".aif", ".aiff", ".caf"}),
}
"""Kind of files → their suffixes in a folder. The part that takes them is named after the kind."""
RESERVED_NAMES = {"priority": "batches have the priority low"}
"""Names that a row may not use → the reason."""


@dataclass(frozen=True)
class BatchRow:
    """One row: its parts and options by name."""

    index: int
    id: Any
    values: Mapping[str, Any]

    @property
    def names(self) -> frozenset[str]:
        """Names that the row sets, as written in the row and as in a form."""
        return frozenset((*self.values, *(name for name, _ in _iter_named_values(self.values))))


@dataclass(frozen=True)
class Rows:
    """The rows of one source. Each iteration reads them again: millions of lines need no memory, and a folder only that of its paths."""

    source: Path
    """A file of JSON lines, or a folder."""
    parts: Mapping[str, str]
    """Name of a part → its kind."""
    max_bytes: int
    """Maximum size of a file that the service takes."""
    excluded: frozenset[Path]
    """Resolved files and folders that are not rows, nor is anything inside them: those of the results."""

    def __iter__(self) -> Iterator[BatchRow]:
        """Iterate over the rows. Raises UsageError for a line that is not a row."""
        if self.source.is_dir():
            yield from (BatchRow(index, None, values) for index, values in enumerate(self._files()))
            return
        for index, (number, line) in enumerate(self._lines()):
            values = _parse_line(line, f"{self.source}: line {number}")
            yield BatchRow(index, values.pop("id", None), values)

    def survey(self) -> tuple[int, str]:
        """Return the number of rows, and the SHA-256 of their content and of the sizes of their files. Raises UsageError."""
        digest, count = hashlib.sha256(), 0
        for row in self:
            sizes = [_size(path) for _, path in self._paths(row)]
            digest.update(json.dumps([row.id, row.values, sizes], sort_keys=True).encode() + b"\n")
            count += 1
        if not count:
            suffixes = ", ".join(sorted(suffix for kind in self.parts.values() for suffix in KIND_SUFFIXES.get(kind, ())))
            suffix_hint = f"; files are recognised by their suffixes: {suffixes}" if self.source.is_dir() else ""
            raise UsageError(f"{self.source}: contains no rows{suffix_hint}")
        return count, digest.hexdigest()

    def request(self, row: BatchRow, task: str, options: Mapping[str, str | list[str]], accept: str | None) -> ApiRequest:
        """Return the request of a row. Its own values take precedence over the options of all rows. Raises OSError, ValueError."""
        from urllib.parse import quote

        from opsin.api_request import ApiRequest, option_text

        files: dict[str, list[bytes]] = {}
        for name, path in self._paths(row):
            files.setdefault(name, []).append(_read_file(path, self.max_bytes))
        texts = {name: [value] if isinstance(value, str) else [*value] for name, value in options.items() if name not in row.names}
        for name, values in _iter_named_values(row.values):
            if not values:
                raise ValueError(f"{name}: an empty list; leave it out")
            if name not in files:
                texts.setdefault(name, []).extend(option_text(value) for value in values)
        headers = {} if accept is None else {"Accept": accept}
        return ApiRequest("POST", f"/v1/{quote(task, safe='')}", query={"priority": "low"}, headers=headers, parts=files, form=texts)

    def _paths(self, row: BatchRow) -> Iterator[tuple[str, Path]]:
        """Yield the parts of a row that are files, with their paths."""
        from opsin.inpainting import MASK_EXPRESSIONS

        folder = self.source if self.source.is_dir() else self.source.parent
        for name, values in _iter_named_values(row.values):
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
        kinds = {suffix: kind for kind in self.parts.values() for suffix in KIND_SUFFIXES.get(kind, ())}
        for path in sorted(self.source.rglob("*")):
            inner = path.relative_to(self.source)
            hidden = any(part.startswith(".") for part in inner.parts)
            if not hidden and path.suffix.lower() in kinds and path.is_file():
                resolved = path.resolve()
                if self.excluded.isdisjoint((resolved, *resolved.parents)):
                    yield {kinds[path.suffix.lower()]: str(inner)}


def _parse_line(line: str, location: str) -> dict[str, Any]:
    """Parse a line. Raises UsageError."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{location}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise UsageError(f'{location}: write an object such as {{"image": "cat.jpg", "top_k": 3}}')
    for name, value in row.items():
        if name in RESERVED_NAMES:
            raise UsageError(f"{location}: {name}: {RESERVED_NAMES[name]}; leave it out")
        if any(isinstance(one, dict | list) for one in (value if isinstance(value, list) else [value])):
            raise UsageError(f"{location}: {name}: write a text, a number, true or false, or a list of these")
    return row


def _iter_named_values(row_values: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield names as in a form, with their values. A list may have a plural name, as in JSON bodies."""
    for name, value in row_values.items():
        if isinstance(value, list):
            yield name.removesuffix("s"), value
        elif value is not None:
            yield name, [value]


def _read_file(path: Path, max_bytes: int) -> bytes:
    """Read a file.

    Raises OSError, and ValueError for names with a NUL or a lone surrogate, pipes, devices, and files of more than `max_bytes`.
    """
    try:
        status = path.stat()
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: not a valid file name ({error})") from error
    if stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{path}: a folder; name a file")
    if not stat.S_ISREG(status.st_mode):  # a pipe or a device may be endless
        raise ValueError(f"{path}: not a regular file")
    if status.st_size > max_bytes:
        raise ValueError(f"{path}: {status.st_size} bytes; the service takes at most {max_bytes}")
    with path.open("rb") as file:
        return file.read(max_bytes + 1)  # one byte more if it has grown since: the service rejects it


def _size(path: Path) -> int:
    """Return the size of a file, -1 if it does not exist or its name is not valid. Only its own row fails then."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return -1
