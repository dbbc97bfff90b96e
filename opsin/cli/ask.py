"""`opsin ask`: run any task of the service, and print its answer as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from opsin.cli.shared.console import escape_controls
from opsin.cli.shared.errors import UsageError
from opsin.cli.shared.options import Url
from opsin.cli.shared.service_calls import open_client


def ask(
    task: Annotated[str, typer.Argument(metavar="TASK", help="The task's name, as in POST /v1/TASK.")],
    parts: Annotated[list[str], typer.Argument(metavar="PART=FILE...", help="Such as image=cat.jpg; may be repeated.")],
    option: Annotated[list[str] | None, typer.Option("-o", "--option", metavar="NAME=VALUE", help="May be repeated.")] = None,
    url: Url = None,
) -> None:
    """Run any task of the service, including your own, and print the result as JSON."""
    files, options = parse_pairs(parts, "PART=FILE"), parse_pairs(option or [], "NAME=VALUE")
    paths_by_part = {
        name: [Path(file) for file in ([named_files] if isinstance(named_files, str) else named_files)]
        for name, named_files in files.items()
    }
    for name in ("self", "task", "parts"):
        if name in options:
            raise UsageError(f"--option {name}: an option cannot have this name")
    for name, paths in paths_by_part.items():
        for path in paths:
            if not path.is_file():
                raise UsageError(f"{name}: {path}: no such file")
    with open_client(url, task) as client:
        try:
            answer = client.ask(task, paths_by_part, **options)
        except UnicodeEncodeError:
            raise
        except ValueError as error:
            raise UsageError(f"{task}: {error}") from error
    typer.echo(escape_controls(json.dumps(answer, indent=2, ensure_ascii=False)))


def parse_pairs(texts: list[str], form: str) -> dict[str, str | list[str]]:
    """Parse NAME=VALUE: return the value of each name, or a list if it is repeated. Raises UsageError."""
    values: dict[str, list[str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise UsageError(f"{name!r}: write {form}")
        values.setdefault(name, []).append(value)
    return {name: several if several[1:] else several[0] for name, several in values.items()}
