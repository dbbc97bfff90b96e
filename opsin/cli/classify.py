"""`opsin classify`: label images through a running service."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsin.cli import image_files
from opsin.cli.exits import Failure, Misuse

if TYPE_CHECKING:
    from rich.table import Table

    from opsin.results import Classification
    from opsin.zero_shot import ZeroShotClassification


def classify(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Image files.", show_default=False)],
    url: Annotated[str | None, typer.Option(help="The service. [default: $OPSIN_URL or http://127.0.0.1:8000]", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="NAME or NAME@VERSION.", show_default=False)] = None,
    merge: Annotated[str | None, typer.Option(help="off, tokens to merge per block, or a rung.", show_default=False)] = None,
    top_k: Annotated[int | None, typer.Option(help="Labels per image.", show_default=False)] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds per image. [default: 60; of a job an hour, or OPSIN_JOB_TIMEOUT]", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line and image.")] = False,
    later: Annotated[
        bool, typer.Option("--later", help="Make a job of each file and print its id, a tab and the file: see opsin jobs.")
    ] = False,
) -> None:
    """Label images with a running service; each file is a request of its own, so one bad file does not spoil the others.

    Exit code 0 if every image was labelled, or taken for later, 1 if one was not.
    """
    from opsin.client import Client

    image_files.check(files)
    if timeout is not None and timeout <= 0:
        raise Misuse(f"--timeout: {timeout:g} seconds; it must be positive")
    if later and as_json:
        raise Misuse("--json: with --later there are no answers yet; opsin jobs result prints them as JSON")
    options: Any = {"model": model, "merge": merge, "top_k": top_k}
    if later:
        _ask_later(url, files, {**options, "timeout": timeout})
        return
    with Client(url, timeout=60.0 if timeout is None else timeout) as client:
        answers = image_files.answers(lambda file: client.classify(file, wait=True, **options), files, "Classifying")
    image_files.report(answers, picture_table, as_json=as_json)


def _ask_later(url: str | None, files: list[Path], options: dict[str, Any]) -> None:
    """Print the id of each file's job; raises Failure with those that the service did not take."""
    from opsin.client import Client
    from opsin.errors import OpsinError

    refused = []
    with Client(url) as client:
        for file in files:
            try:
                typer.echo(f"{client.classify(file, wait=False, **options).id}\t{file}")
            except OpsinError as error:
                refused.append(f"{file}: {error}")
    if refused:
        raise Failure(*refused)


def picture_table(rows: Iterable[tuple[str, Classification | ZeroShotClassification]]) -> Table:
    """A row for each name and what was found: best labels, tokens into and out of the network where it has any, the service's time and
    the network's."""
    from rich.markup import escape
    from rich.table import Table

    found_in = list(rows)
    merges = any(found.merging for _, found in found_in)
    table = Table("Image", "Labels", box=None, header_style="bold", pad_edge=False)
    for name in ("Tokens", "Latency", "Network") if merges else ("Latency", "Network"):
        table.add_column(name, justify="right")
    for name, found in found_in:
        tokens = f"{found.merging.tokens_in} → {found.merging.tokens_out}" if found.merging else ""
        times = f"{found.timing.total_ms:.1f} ms", f"{found.timing.inference_ms:.1f} ms"
        table.add_row(escape(name), _labels(found), *([tokens] if merges else []), *times)
    return table


def _labels(found: Classification | ZeroShotClassification, count: int = 3) -> str:
    """The best labels as rich markup, the first of them bold: `fruit 97 %  vegetables 2 %`."""
    from rich.markup import escape

    if not found.predictions:  # none reaches the threshold
        return "[dim]none[/]"
    first, *others = [f"{escape(prediction.label)} {prediction.score:.0%}" for prediction in found.predictions[:count]]
    return "  ".join([f"[bold]{first}[/]", *(f"[dim]{other}[/]" for other in others)])
