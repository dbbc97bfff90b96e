"""The results of `opsin batch`: a header line, a line for each row in order, and beside them a folder of the files that were answered.

A process that is killed leaves whole lines and at most one torn one behind, which the next one cuts off."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from opsin.cli.exits import Failure, Misuse

OTHERS = {"task": "another task", "inputs": "other rows", "options": "other options"}
"""Fields of the header that must agree → what it means where they do not."""


@dataclass(frozen=True)
class File:
    """An answer that is a file."""

    suffix: str
    content: bytes


@dataclass(frozen=True)
class Result:
    """What became of a row. Its `error` is a problem's fields."""

    index: int
    id: Any
    answer: Mapping[str, Any] | None = None
    file: File | None = None
    error: Mapping[str, Any] | None = None


def folder_of(output: Path) -> Path:
    """Where files go that were answered to the rows of `OUT.jsonl`: `OUT.files`."""
    return output.with_suffix(".files")


class Results:
    """A context manager: the open file. `done` and `failed` count what stands in it."""

    def __init__(self, output: Path, header: Mapping[str, Any], *, resume: bool) -> None:
        """Raises Misuse where `output` is there and may not be gone on with, or another process writes it."""
        self._output = output
        self._folder = folder_of(output)
        self.done = self.failed = 0
        self.first_failure: tuple[int, str] | None = None
        if output.exists() and not resume:
            raise Misuse(f"{output}: there already; --resume goes on with it")
        try:
            self._file: BinaryIO = output.open("r+b" if output.exists() else "xb", buffering=0)
            _lock(self._file)
            self._recall(header)
        except BlockingIOError as error:
            raise Misuse(f"{output}: another `opsin batch` writes it; wait for its end, or name another file") from error
        except OSError as error:
            raise Misuse(f"{output}: cannot be written ({error.strerror})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if not self.done:
            self._output.unlink()  # whoever has mended what kept it from beginning may begin

    def write(self, result: Result) -> None:
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
            raise Failure(f"{error.filename or self._output}: cannot be written ({error.strerror})") from error
        self._count(row)

    def _recall(self, header: Mapping[str, Any]) -> None:
        """Count what is there and cut off a torn line. Raises Misuse."""
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
                elif told.get("index") != self.done:
                    raise Misuse(f"{self._output}: line {number + 1} is not that of row {self.done}: another program has changed it")
                else:
                    self._count(told)
                end += len(line)
        self._file.truncate(end)
        self._file.seek(end)
        if end == 0:
            self._append(header)
        for left in self._folder.glob(f"{self.done}.*"):  # of a row whose line was not written any more
            left.unlink()

    def _check(self, told: Mapping[str, Any], header: Mapping[str, Any]) -> None:
        if "opsin_batch" not in told:
            raise Misuse(f"{self._output}: no results of opsin batch; name another file")
        for name, meaning in OTHERS.items():
            if told.get(name) != header[name]:
                raise Misuse(f"{self._output}: begun with {meaning}; name another file, or ask for the same")

    def _keep(self, index: int, file: File) -> str:
        """The file's path beside the results."""
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"{index}.{file.suffix}"
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


def _object(line: bytes) -> Mapping[str, Any]:
    try:
        told = json.loads(line)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
