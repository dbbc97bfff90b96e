"""`opsin jobs`: inspect, wait for and cancel asynchronous jobs."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from opsin.cli.shared.console import escape_controls
from opsin.cli.shared.errors import CommandError
from opsin.cli.shared.options import Url
from opsin.cli.shared.service_calls import open_client

app = typer.Typer(help="Inspect, wait for and cancel asynchronous jobs.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", help="Job ID, as returned by the service.")]


@app.command()
def show(job_id: Id, url: Url = None) -> None:
    """Print a job as JSON: its state, queue position, progress, times and error. Exit code 1 if it ended without an answer."""
    with open_client(url, f"job {job_id}") as client:
        status = client.job(job_id).status()
    _print(status.details)
    if status.ended and status.state != "done":
        raise typer.Exit(1)


@app.command()
def events(
    job_id: Id, url: Url = None, after: Annotated[int, typer.Option(min=0, help="Only print events after the one with this number.")] = 0
) -> None:
    """Print a job's events, one JSON object per line, until it ends. Exit code 1 if it ends without an answer."""
    last = None
    with open_client(url, f"job {job_id}") as client:
        job = client.job(job_id)
        for last in job.events(after):
            typer.echo(escape_controls(json.dumps({"id": last.id, "event": last.name, "data": last.data}, ensure_ascii=False)))
        if last is None:  # the final event was read before
            status = job.status()
            ended, error = status.state, status.details.get("error") or {}
        else:
            ended, error = last.name, last.data
    if ended != "done":
        raise CommandError(f"job {job_id}: {error.get('detail', ended)}")


@app.command()
def result(job_id: Id, url: Url = None, wait: Annotated[bool, typer.Option(help="Wait for the end of the job.")] = True) -> None:
    """Print a job's answer as JSON."""
    with open_client(url, f"job {job_id}") as client:
        job = client.job(job_id)
        status = None if wait else job.status()
        if status is not None and not status.ended:
            raise CommandError(f"job {job_id}: it is {status.state} and has no result yet")
        _print(job.result())


@app.command()
def cancel(job_id: Id, url: Url = None) -> None:
    """Cancel a job, or delete its stored result if it has finished."""
    with open_client(url, f"job {job_id}") as client:
        client.job(job_id).cancel()


def _print(document: object) -> None:
    typer.echo(escape_controls(json.dumps(document, indent=2, ensure_ascii=False)))
