"""Waiting for a job before the eyes of somebody at a terminal."""

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


def wait_with_progress(job: Job[T], doing: str, *, elapsed: bool = False, preview: Callable[[Mapping[str, Any]], Text] | None = None) -> T:
    """The result; on a terminal a progress bar meanwhile. Cancels the job if it is interrupted. Raises OpsinError.

    elapsed: show the time that has passed, where the steps ahead are not alike. preview: draws what a preview brings, above the bar.
    """
    from rich.console import Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = make_console(errors=True)
    time = TimeElapsedColumn() if elapsed else TimeRemainingColumn()
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), time, console=console)
    shown = bar.add_task("Waiting", total=None)
    try:
        if not console.is_terminal:
            return job.result()
        with Live(bar, console=console, transient=True) as live:
            for event in job.events():
                if event.name == "progress":
                    bar.update(shown, description=doing, completed=event.data["done"], total=event.data["total"])
                elif event.name == "preview" and preview is not None:
                    live.update(Group(preview(event.data), bar))
        return job.result()
    except KeyboardInterrupt:
        try:
            job.cancel()
        except Refused:  # it has ended
            pass
        except (OpsinError, KeyboardInterrupt):  # the service is away, or hangs until Ctrl-C is pressed again
            told = f"job {job.id} may go on: `opsin jobs show {job.id}`, and `opsin jobs cancel {job.id}` ends it"
            typer.echo(f"opsin: interrupted; {told}", err=True)
        raise
