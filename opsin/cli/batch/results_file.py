"""The results of `opsin batch`: a header line, a line for each row in order, and a folder next to them for answers that are files.

A killed process leaves complete lines and at most one partial line behind, which the next run cuts off.
"""

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
"""Fields of the header that must be equal → the message if they are not."""
SUFFIXES = {
    "image/png": "png",
    "video/mp4": "mp4",
    "model/gltf-binary": "glb",
    "application/x-ply": "ply",
    "application/x-npy": "npy",
    "application/x-npz": "npz",
}
"""Media type of an answer → suffix of its file."""
DEFAULT_SUFFIX = "bin"
"""Suffix of answers of other media types."""


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


def answers_folder(output: Path) -> Path:
    """Return the folder for answers that are files: `OUT.files` for `OUT.jsonl`, else the output's full name plus `.files`."""
    return output.with_suffix(".files") if output.suffix == ".jsonl" else output.with_name(f"{output.name}.files")


class ResultsFile:
    """The open file, a context manager. `done` and `failed` count its rows."""

    def __init__(self, output: Path, header: Mapping[str, Any], *, resume: bool) -> None:
        """Open or create the file. Raises UsageError if it exists and cannot be continued, or only its folder exists, or another process
        is writing it."""
        self._output = output
        self._folder = answers_folder(output)
        self.done = self.failed = 0
        self.first_failure: tuple[int, str] | None = None
        if output.exists() and not resume:
            raise UsageError(f"{output}: already exists; use --resume to continue it")
        try:
            has_header = _has_header(output)
            if not has_header and os.path.lexists(self._folder):
                raise UsageError(f"{self._folder}: already exists, but answers that are files go there; move it, or choose another output")
            self._has_folder = has_header and self._folder.is_dir()
            self._file: BinaryIO = output.open("r+b" if output.exists() else "xb", buffering=0)
            _lock(self._file)
            self._load_existing(header)
        except BlockingIOError as error:
            raise UsageError(f"{output}: in use by another `opsin batch`; wait until it finishes or choose another file") from error
        except OSError as error:
            raise UsageError(f"{output}: cannot be written ({error.strerror})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if not self.done:  # so that the next run can start from scratch
            self._output.unlink()
            if self._has_folder:
                self._delete_unfinished()
                with suppress(OSError):  # there are other files in it
                    self._folder.rmdir()

    def write(self, result: BatchResult) -> None:
        """Write the next row. Raises CommandError."""
        row: dict[str, Any] = {"index": result.index}
        if result.id is not None:
            row["id"] = result.id
        try:
            if result.error is not None:
                row["error"] = result.error
            elif result.file is not None:
                row["answer"] = {"file": self._store_file(result.index, result.file), **(result.answer or {})}
            else:
                row["answer"] = result.answer
            self._append(row)
        except OSError as error:
            raise CommandError(f"{error.filename or self._output}: cannot be written ({error.strerror})") from error
        self._count(row)

    def _load_existing(self, header: Mapping[str, Any]) -> None:
        """Count the rows of an earlier run and cut off a partial line. Raises UsageError."""
        end = 0
        with self._output.open("rb") as lines:
            for number, line in enumerate(lines):
                if not line.endswith(b"\n"):
                    if number == 0 and not _encode_line(header).startswith(line):
                        self._check({}, header)
                    break
                parsed = _parse_object(line)
                if number == 0:
                    self._check(parsed, header)
                elif self.done == header["rows"] or not _is_result(parsed, self.done):
                    raise UsageError(
                        f"{self._output}: line {number + 1} is not row {self.done} of {header['rows']}: another program changed it; "
                        "delete it and all following lines, or choose another file"
                    )
                else:
                    self._count(parsed)
                end += len(line)
        self._file.truncate(end)
        self._file.seek(end)
        if end == 0:
            self._append(header)
        if self._has_folder:
            self._delete_unfinished()

    def _delete_unfinished(self) -> None:
        """Delete the files of a row whose line was not written."""
        for suffix in (*SUFFIXES.values(), DEFAULT_SUFFIX):
            for name in (f"{self.done}.{suffix}", f"{self.done}.{suffix}.part"):
                (self._folder / name).unlink(missing_ok=True)

    def _check(self, parsed: Mapping[str, Any], header: Mapping[str, Any]) -> None:
        if "opsin_batch" not in parsed:
            raise UsageError(f"{self._output}: not an output file of opsin batch; choose another file")
        for name, meaning in HEADER_MISMATCHES.items():
            if parsed.get(name) != header[name]:
                raise UsageError(f"{self._output}: written with {meaning}; choose another file, or use the same ones")

    def _store_file(self, index: int, file: AnswerFile) -> str:
        """Store an answer that is a file, and return its path relative to the results."""
        if not self._has_folder:
            self._folder.mkdir()
            self._has_folder = True
        path = self._folder / f"{index}.{SUFFIXES.get(file.media_type, DEFAULT_SUFFIX)}"
        unfinished = path.with_name(f"{path.name}.part")
        unfinished.write_bytes(file.content)
        unfinished.replace(path)
        return f"{self._folder.name}/{path.name}"

    def _append(self, row: Mapping[str, Any]) -> None:
        line = memoryview(_encode_line(row))
        while line:
            line = line[self._file.write(line) :]

    def _count(self, row: Mapping[str, Any]) -> None:
        if "error" in row:
            self.failed += 1
            self.first_failure = self.first_failure or (self.done, row["error"]["detail"])
        self.done += 1


def _lock(file: BinaryIO) -> None:
    """Lock the file until it is closed. Raises BlockingIOError if another process has locked it."""
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass  # some file systems have no locks


def _encode_line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"


def _has_header(output: Path) -> bool:
    """Return whether the file has a complete header. Raises OSError."""
    if not output.exists():
        return False
    with output.open("rb") as lines:
        return lines.readline().endswith(b"\n")


def _is_result(parsed: Mapping[str, Any], index: int) -> bool:
    """Return whether a line is the result of the row `index`, with either an answer or an error, as `write` writes them."""
    if parsed.get("index") != index or ("answer" in parsed) == ("error" in parsed):
        return False
    body = parsed["answer"] if "answer" in parsed else parsed["error"]
    return isinstance(body, dict) and ("answer" in parsed or isinstance(body.get("detail"), str))


def _parse_object(line: bytes) -> Mapping[str, Any]:
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}
