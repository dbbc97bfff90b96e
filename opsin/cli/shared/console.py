"""The console that commands print on, with helpers for tables, sizes, and text from other sources."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PLAIN_WIDTH_CHARS = 120
"""Width of the output in characters if stdout is not a terminal."""
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that a terminal would execute: they move its cursor, and may make it type. Tabs and newlines are allowed."""


def make_console(*, errors: bool = False, record: bool = False) -> Console:
    """Return a rich console on stdout or stderr: with colours and progress on a terminal, else plain text of a readable width."""
    from rich.console import Console

    terminal = (sys.stderr if errors else sys.stdout).isatty()
    return Console(stderr=errors, highlight=False, record=record, width=None if terminal else PLAIN_WIDTH_CHARS)


def make_table(*headings: str, right: Collection[str] = (), title: str | None = None) -> Table:
    """Return an empty table without lines. right: headings of the columns to align right, such as numbers."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left")
    return table


@contextmanager
def progress_bar(label: str, total: int, done: int = 0) -> Iterator[Callable[[float], None]]:
    """Show a progress bar on stderr if that is a terminal, and yield the function that advances it."""
    from rich.progress import Progress

    console = make_console(errors=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        yield partial(bar.advance, bar.add_task(label, total=total, completed=done))


def escape_controls(text: str) -> str:
    """Escape the control characters of a text from another source, such as a server's labels, as JSON does: JSON stays JSON."""
    return CONTROL_CHARACTERS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def escape_markup(text: str) -> str:
    """Escape control characters and rich's markup."""
    from rich.markup import escape

    return escape(escape_controls(text))


def print_note(bundle: str, note: str) -> None:
    """Print a bundle's warning about its answers, if it has one.

    It goes to stderr, dimmed, since stdout is for the answers, and has no line breaks, so that a command in it can be copied.
    """
    if note:
        make_console(errors=True).print(f"[dim]{escape_markup(f'{bundle}: {note}')}[/]", soft_wrap=True)


def format_bytes(count: float) -> str:
    """Format a number of bytes for a reader: `11.4 MB`."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def format_count(count: int, noun: str) -> str:
    """Format a number of things: `1 label`, `10 labels`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
