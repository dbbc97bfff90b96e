"""Calls of the service: the client whose errors end a command, and waiting for a job with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from opsin.cli.shared.console import make_console
from opsin.cli.shared.errors import CommandError
from opsin.errors import OpsinError, Refused

if TYPE_CHECKING:
    from rich.text import Text

    from opsin.client import Client
    from opsin.jobs import Job

T = TypeVar("T")


@contextmanager
def open_client(url: str | None, subject: object, *, timeout: float = 60.0) -> Iterator[Client]:
    """Yield a client. Raises CommandError for an error of the service inside the block, which names the subject, such as a file."""
    from opsin.client import Client

    with Client(url, timeout=timeout) as client:
        try:
            yield client
        except OpsinError as error:
            raise CommandError(f"{subject}: {error}") from error


def wait_with_progress(job: Job[T], label: str, *, elapsed: bool = False, preview: Callable[[Mapping[str, Any]], Text] | None = None) -> T:
    """Wait for a job and return its result, with a progress bar on a terminal. An interruption cancels the job. Raises OpsinError.

    elapsed: show the elapsed time instead of an estimate, for steps of different lengths. preview: draws a preview above the bar.
    """
    from rich.console import Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = make_console(errors=True)
    time_column = TimeElapsedColumn() if elapsed else TimeRemainingColumn()
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), time_column, console=console)
    task_id = bar.add_task("Waiting", total=None)
    try:
        if not console.is_terminal:
            return job.result()
        with Live(bar, console=console, transient=True) as live:
            for event in job.events():
                if event.name == "progress":
                    bar.update(task_id, description=label, completed=event.data["done"], total=event.data["total"])
                elif event.name == "preview" and preview is not None:
                    live.update(Group(preview(event.data), bar))
        return job.result()
    except KeyboardInterrupt:
        try:
            job.cancel()
        except Refused:  # it has ended
            pass
        except (OpsinError, KeyboardInterrupt):  # the service is unavailable, or hangs until Ctrl-C is pressed again
            hint = f"job {job.id} may still be running: see `opsin jobs show {job.id}`, or cancel it with `opsin jobs cancel {job.id}`"
            typer.echo(f"opsin: interrupted; {hint}", err=True)
        raise
