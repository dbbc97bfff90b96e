"""The results of `opsin batch`: a header line, a line for each row in order, and beside them a folder of the files that were answered.

A process that is killed leaves whole lines and at most one torn one behind, which the next one cuts off."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from opsin.cli.shared.errors import CommandError, UsageError

HEADER_MISMATCHES = {"task": "another task", "inputs": "other rows", "options": "other options"}
"""Fields of the header that must agree → what it means where they do not."""
SUFFIXES = {
    "image/png": "png",
    "video/mp4": "mp4",
    "model/gltf-binary": "glb",
    "application/x-ply": "ply",
    "application/x-npy": "npy",
    "application/x-npz": "npz",
}
"""Media types of answers → names of their files."""
OTHER_SUFFIX = "bin"
"""Answers of other media types have this one."""


@dataclass(frozen=True)
class AnswerFile:
    """An answer that is a file."""

    media_type: str
    content: bytes


@dataclass(frozen=True)
class BatchResult:
    """The answer to a row, or its error, whose fields are those of a problem."""

    index: int
    id: Any
    answer: Mapping[str, Any] | None = None
    file: AnswerFile | None = None
    error: Mapping[str, Any] | None = None


def folder_of(output: Path) -> Path:
    """Return the folder of files that were answered: `OUT.files` of `OUT.jsonl`, else the whole name of the output and `.files`."""
    return output.with_suffix(".files") if output.suffix == ".jsonl" else output.with_name(f"{output.name}.files")


class ResultsFile:
    """A context manager: the open file. `done` and `failed` count what stands in it."""

    def __init__(self, output: Path, header: Mapping[str, Any], *, resume: bool) -> None:
        """Raises UsageError where `output` is there and may not be gone on with, where its folder is there before it, or where another process
        writes it."""
        self._output = output
        self._folder = folder_of(output)
        self.done = self.failed = 0
        self.first_failure: tuple[int, str] | None = None
        if output.exists() and not resume:
            raise UsageError(f"{output}: there already; --resume goes on with it")
        try:
            begun = _has_line(output)
            if not begun and os.path.lexists(self._folder):
                raise UsageError(f"{self._folder}: there already, where files that are answered go; move it, or name another output")
            self._has_folder = begun and self._folder.is_dir()
            self._file: BinaryIO = output.open("r+b" if output.exists() else "xb", buffering=0)
            _lock(self._file)
            self._load_existing(header)
        except BlockingIOError as error:
            raise UsageError(f"{output}: another `opsin batch` writes it; wait for its end, or name another file") from error
        except OSError as error:
            raise UsageError(f"{output}: cannot be written ({error.strerror})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if not self.done:  # whoever has mended what kept it from beginning may begin
            self._output.unlink()
            if self._has_folder:
                self._clear()
                with suppress(OSError):  # somebody else has put something there
                    self._folder.rmdir()

    def write(self, result: BatchResult) -> None:
        """The next row. Raises Failure."""
        row: dict[str, Any] = {"index": result.index}
        if result.id is not None:
            row["id"] = result.id
        try:
            if result.error is not None:
                row["error"] = result.error
            elif result.file is not None:
                row["answer"] = {"file": self._keep(result.index, result.file), **(result.answer or {})}
            else:
                row["answer"] = result.answer
            self._append(row)
        except OSError as error:
            raise CommandError(f"{error.filename or self._output}: cannot be written ({error.strerror})") from error
        self._count(row)

    def _load_existing(self, header: Mapping[str, Any]) -> None:
        """Count what is there and cut off a torn line. Raises UsageError."""
        end = 0
        with self._output.open("rb") as lines:
            for number, line in enumerate(lines):
                if not line.endswith(b"\n"):
                    if number == 0 and not _line(header).startswith(line):
                        self._check({}, header)
                    break
                told = _object(line)
                if number == 0:
                    self._check(told, header)
                elif self.done == header["rows"] or not _is_result(told, self.done):
                    raise UsageError(
                        f"{self._output}: line {number + 1} is not of row {self.done} of {header['rows']}: another program changed it; "
                        "delete it and what follows, or name another file"
                    )
                else:
                    self._count(told)
                end += len(line)
        self._file.truncate(end)
        self._file.seek(end)
        if end == 0:
            self._append(header)
        if self._has_folder:
            self._clear()

    def _clear(self) -> None:
        """Delete what a process has left of a row whose line it did not write any more."""
        for suffix in (*SUFFIXES.values(), OTHER_SUFFIX):
            for name in (f"{self.done}.{suffix}", f"{self.done}.{suffix}.part"):
                (self._folder / name).unlink(missing_ok=True)

    def _check(self, told: Mapping[str, Any], header: Mapping[str, Any]) -> None:
        if "opsin_batch" not in told:
            raise UsageError(f"{self._output}: no results of opsin batch; name another file")
        for name, meaning in HEADER_MISMATCHES.items():
            if told.get(name) != header[name]:
                raise UsageError(f"{self._output}: begun with {meaning}; name another file, or ask for the same")

    def _keep(self, index: int, file: AnswerFile) -> str:
        """The file's path beside the results."""
        if not self._has_folder:
            self._folder.mkdir()
            self._has_folder = True
        path = self._folder / f"{index}.{SUFFIXES.get(file.media_type, OTHER_SUFFIX)}"
        begun = path.with_name(f"{path.name}.part")
        begun.write_bytes(file.content)
        begun.replace(path)
        return f"{self._folder.name}/{path.name}"

    def _append(self, row: Mapping[str, Any]) -> None:
        line = memoryview(_line(row))
        while line:
            line = line[self._file.write(line) :]

    def _count(self, row: Mapping[str, Any]) -> None:
        if "error" in row:
            self.failed += 1
            self.first_failure = self.first_failure or (self.done, row["error"]["detail"])
        self.done += 1


def _lock(file: BinaryIO) -> None:
    """Hold the file until it is closed. Raises BlockingIOError where another process holds it."""
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass  # some file systems have no locks


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"


def _has_line(output: Path) -> bool:
    """Whether more than a torn header is there. Raises OSError."""
    if not output.exists():
        return False
    with output.open("rb") as lines:
        return lines.readline().endswith(b"\n")


def _is_result(told: Mapping[str, Any], index: int) -> bool:
    """Whether a line is that of the row `index`, with either an answer or an error as `write` writes them."""
    if told.get("index") != index or ("answer" in told) == ("error" in told):
        return False
    found = told["answer"] if "answer" in told else told["error"]
    return isinstance(found, dict) and ("answer" in told or isinstance(found.get("detail"), str))


def _object(line: bytes) -> Mapping[str, Any]:
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}
