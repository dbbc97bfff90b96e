"""`opsin actions`: recognise who does what, and when, in a video."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsin.cli.shared import output_files
from opsin.cli.shared.console import escape_markup, make_console, print_note
from opsin.cli.shared.errors import UsageError
from opsin.cli.shared.options import Model, Timeout, Url
from opsin.cli.shared.service_calls import open_client, wait_with_progress

if TYPE_CHECKING:
    from rich.table import Table

    from opsin.actions import Second, VideoActions

MP4 = "video/mp4"


def actions(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Video, or tracks as .json or .npz.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="MP4 file: the clip with boxes, skeletons and labels.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the answer as JSON.")] = None,
    url: Url = None,
    model: Model = None,
    top_k: Annotated[int | None, typer.Option(help="Number of labels for each person and second.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Minimum score of a label.")] = None,
    start: Annotated[float | None, typer.Option(help="Start of the analysed part, in seconds.")] = None,
    end: Annotated[float | None, typer.Option(help="End of the analysed part, in seconds.")] = None,
    people: Annotated[int | None, typer.Option(help="Maximum number of people to track at once.")] = None,
    detail: Annotated[str | None, typer.Option(help="Detection quality: fast, standard or high.")] = None,
    timeout: Timeout = 3600.0,
) -> None:
    """Recognise who does what, and when, in a video. Shows a progress bar.

    Ctrl-C also cancels the work in the service.
    """
    if not file.is_file():
        raise UsageError(f"{file}: no such file")
    output_files.check_writable(output, json_file)
    output_files.check_suffix(output, ".mp4")
    is_tracks = file.suffix.lower() in (".json", ".npz")
    if is_tracks and output is not None:
        raise UsageError(f"--output: {file} holds tracks, so there is no video to draw into")
    options: Any = {
        "model": model,
        "top_k": top_k,
        "threshold": threshold,
        "start_s": start,
        "end_s": end,
        "people": people,
        "detail": detail,
        "timeout": timeout,
    }
    with open_client(url, file) as client:
        job = client.actions(None if is_tracks else file, tracks=file if is_tracks else None, wait=False, **options)
        result = wait_with_progress(job, "Analysing")
        if json_file is not None:  # first: drawing the annotated clip may fail
            output_files.write(json_file, json.dumps(result.document, ensure_ascii=False).encode())
        if output is not None:
            output_files.write(output, job.file(MP4))
    make_console().print(actions_table(result) if result.people else "no people were detected")
    for written in (output, json_file):
        if written is not None:
            typer.echo(str(written))
    print_note(f"{result.model}@{result.version}", result.note)


def actions_table(result: VideoActions) -> Table:
    """Return a table with a row for each run of seconds with equal best labels, with mean scores."""
    from rich.table import Table

    table = Table("person", "seconds", "actions (mean scores)", box=None, pad_edge=False)
    for person in result.people:
        for run in person.runs:
            table.add_row(str(person.person), f"{run.start_s:.1f} – {run.end_s:.1f}", _format_labels(run))
    return table


def _format_labels(run: Second) -> str:
    labels = ", ".join(f"{escape_markup(label.label)} {label.score:.2f}" for label in run.labels) or "–"
    return f"unsure: {labels}" if run.unsure else labels
