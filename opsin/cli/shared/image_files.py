"""Image files of a command: search in folders, and the service's answer to each file, so that a bad file does not affect the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from opsin.cli.shared.console import escape_controls, make_console, print_note
from opsin.cli.shared.errors import CommandError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from opsin.errors import OpsinError

MAX_CONCURRENT_REQUESTS = 16
"""Number of requests at a time: enough for the service to fill its batches."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
"""Suffixes of image files in a folder."""

T = TypeVar("T")


def check_files(files: list[Path], kinds: str = "images") -> None:
    """Raise UsageError for folders, and for files that do not exist. kinds: the kinds of files that the command takes."""
    folder = next((file for file in files if file.is_dir()), None)
    if folder is not None:
        raise UsageError(f"{folder}: a folder; name its {kinds}, such as {folder}/*.jpg")
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UsageError(f"{missing[0]}: no such file" + (f" (and {len(missing) - 1} more)" if missing[1:] else ""))


def expand_folders(sources: Sequence[Path]) -> tuple[list[Path], int]:
    """Return the files, each once, those of folders in order of name; and the number of other files in folders. Raises UsageError."""
    files, other_count = dict[Path, None](), 0
    for source in sources:
        if source.is_file():
            files[source] = None
        elif source.is_dir():
            inner = sorted(path for path in source.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(source)))
            images = [path for path in inner if path.suffix.lower() in IMAGE_SUFFIXES]
            files.update(dict.fromkeys(images))
            other_count += len(inner) - len(images)
        else:
            raise UsageError(f"{source}: no such file or folder")
    if not files:
        raise UsageError(f"{sources[0]}: contains no images; images are recognised by their suffixes: {', '.join(sorted(IMAGE_SUFFIXES))}")
    return list(files), other_count


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def answer_all(send: Callable[[Path], T], files: list[Path], label: str) -> dict[Path, T | OpsinError]:
    """Return the service's answer to each file, in input order, with a progress bar on a terminal."""
    from rich.progress import track

    console = make_console(errors=True)
    pool = ThreadPoolExecutor(MAX_CONCURRENT_REQUESTS)
    try:
        pending = pool.map(partial(answer_or_error, send), files)
        answers = track(pending, label, len(files), console=console, transient=True, disable=not console.is_terminal)
        return dict(zip(files, answers, strict=True))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C, do not wait for requests that hang


def answer_or_error(send: Callable[..., T], *arguments: Any, **options: Any) -> T | OpsinError:
    """Return the service's answer to a file, or the error: the service rejects the file, or it cannot be read."""
    from opsin.errors import OpsinError, Refused

    try:
        return send(*arguments, **options)
    except OpsinError as error:
        return error
    except OSError as error:
        return Refused(f"cannot be read ({error.strerror})")


def report(answers: Mapping[Path, Any], table: Callable[[Iterable[tuple[str, Any]]], RenderableType], *, as_json: bool) -> None:
    """Print results, as a table or one JSON object per line. Raises CommandError with a sentence for each file that failed."""
    from opsin.errors import OpsinError

    successes = {file: answer for file, answer in answers.items() if not isinstance(answer, OpsinError)}
    if as_json:
        for file, answer in answers.items():
            typer.echo(escape_controls(json.dumps(_line(file, answer), ensure_ascii=False)))
    elif successes:
        make_console().print(table((file.name, result) for file, result in successes.items()))
        for bundle, note in dict.fromkeys((f"{result.model}@{result.version}", result.note) for result in successes.values()):
            print_note(bundle, note)
    if len(successes) < len(answers):
        raise CommandError(*(f"{file}: {error}" for file, error in answers.items() if file not in successes))


def _line(file: Path, answer: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from opsin.errors import OpsinError

    if isinstance(answer, OpsinError):
        return {"file": str(file), "error": {"status": answer.status, "title": answer.title, "detail": answer.detail}}
    return {"file": str(file), **asdict(answer)}
