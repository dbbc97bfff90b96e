"""`opsin ask`: any task of the service, and its answer as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from opsin.cli.exits import Failure, Misuse
from opsin.cli.options import Url
from opsin.cli.screen import printable


def ask(
    task: Annotated[str, typer.Argument(help="As in POST /v1/TASK.", show_default=False)],
    parts: Annotated[list[str], typer.Argument(metavar="PART=FILE...", help="Such as image=cat.jpg.", show_default=False)],
    option: Annotated[list[str] | None, typer.Option("-o", "--option", metavar="NAME=VALUE", help="May be repeated.")] = None,
    url: Url = None,
) -> None:
    """Ask for any task of a running service, one that you have added too, and print the answer as JSON."""
    from opsin.client import Client
    from opsin.errors import OpsinError

    files, options = pairs(parts, "PART=FILE"), pairs(option or [], "NAME=VALUE")
    for name, file in files.items():
        if not Path(file).is_file():
            raise Misuse(f"{name}: {file}: no such file")
    with Client(url) as client:
        try:
            answer = client.ask(task, {name: Path(file) for name, file in files.items()}, **options)
        except OpsinError as error:
            raise Failure(f"{task}: {error}") from error
    typer.echo(printable(json.dumps(answer, indent=2, ensure_ascii=False)))


def pairs(given: list[str], form: str) -> dict[str, str]:
    """Raises Misuse."""
    pairs = [text.partition("=") for text in given]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise Misuse(f"{name!r}: write {form}")
    return {name: value for name, _, value in pairs}
