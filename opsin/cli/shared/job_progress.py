"""Waiting for a job with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from opsin.cli.shared.console import make_console
from opsin.errors import OpsinError, Refused

if TYPE_CHECKING:
    from rich.text import Text

    from opsin.jobs import Job

T = TypeVar("T")


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
