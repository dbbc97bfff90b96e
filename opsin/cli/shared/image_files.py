"""Image files of a command: those of folders, and the service's answers to them one by one, so that one bad file spoils no other."""

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

IN_FLIGHT = 16
"""Requests at a time: enough for the service to fill its batches."""

IMAGES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
"""Suffixes of the files that are taken from a folder."""

T = TypeVar("T")


def check(files: list[Path], kinds: str = "images") -> None:
    """Raises UsageError for folders, and for files that are not there. kinds: of files that the command takes."""
    folder = next((file for file in files if file.is_dir()), None)
    if folder is not None:
        raise UsageError(f"{folder}: a folder; name its {kinds}, such as {folder}/*.jpg")
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UsageError(f"{missing[0]}: no such file" + (f" (and {len(missing) - 1} more)" if missing[1:] else ""))


def expand_folders(sources: Sequence[Path]) -> tuple[list[Path], int]:
    """Files, each once, those of folders by name; and how many of folders are no images. Raises UsageError."""
    found, others = dict[Path, None](), 0
    for source in sources:
        if source.is_file():
            found[source] = None
        elif source.is_dir():
            inner = sorted(path for path in source.rglob("*") if path.is_file() and not _hidden(path.relative_to(source)))
            images = [path for path in inner if path.suffix.lower() in IMAGES]
            found.update(dict.fromkeys(images))
            others += len(inner) - len(images)
        else:
            raise UsageError(f"{source}: no such file or folder")
    if not found:
        raise UsageError(f"{sources[0]}: no image in it; images are known by their suffixes, {', '.join(sorted(IMAGES))}")
    return list(found), others


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def answers(ask: Callable[[Path], T], files: list[Path], doing: str) -> dict[Path, T | OpsinError]:
    """The service's answer to each file, in the order of the files; a progress bar on a terminal meanwhile."""
    from rich.progress import track

    console = make_console(errors=True)
    pool = ThreadPoolExecutor(IN_FLIGHT)
    try:
        answered = pool.map(partial(answer, ask), files)
        found = track(answered, doing, len(files), console=console, transient=True, disable=not console.is_terminal)
        return dict(zip(files, found, strict=True))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C nobody waits for requests that hang


def answer(ask: Callable[..., T], *arguments: Any, **options: Any) -> T | OpsinError:
    """The service's answer to a file, or why there is none: it refuses the file, or that cannot be read any more."""
    from opsin.errors import OpsinError, Refused

    try:
        return ask(*arguments, **options)
    except OpsinError as error:
        return error
    except OSError as error:
        return Refused(f"cannot be read ({error.strerror})")


def report(answers: Mapping[Path, Any], table: Callable[[Iterable[tuple[str, Any]]], RenderableType], *, as_json: bool) -> None:
    """Print what was found, as a table or one JSON object a line. Raises Failure with a sentence for each file that was refused."""
    from opsin.errors import OpsinError

    labelled = {file: answer for file, answer in answers.items() if not isinstance(answer, OpsinError)}
    if as_json:
        for file, answer in answers.items():
            typer.echo(escape_controls(json.dumps(_line(file, answer), ensure_ascii=False)))
    elif labelled:
        make_console().print(table((file.name, found) for file, found in labelled.items()))
        for bundle, note in dict.fromkeys((f"{found.model}@{found.version}", found.note) for found in labelled.values()):
            print_note(bundle, note)
    if len(labelled) < len(answers):
        raise CommandError(*(f"{file}: {error}" for file, error in answers.items() if file not in labelled))


def _line(file: Path, answer: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from opsin.errors import OpsinError

    if isinstance(answer, OpsinError):
        return {"file": str(file), "error": {"status": answer.status, "title": answer.title, "detail": answer.detail}}
    return {"file": str(file), **asdict(answer)}
