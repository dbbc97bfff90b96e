"""The console that commands print on, and how they print what others have written."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH_OF_A_FILE = 120
"""Columns where stdout is no terminal and so has no width."""
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""A terminal obeys them: they move its cursor, and may make it type. Tabs and ends of lines pass."""


def make_console(*, errors: bool = False, record: bool = False) -> Console:
    """A rich console on stdout or stderr: colours and progress on a terminal, plain text of a readable width elsewhere."""
    from rich.console import Console

    terminal = (sys.stderr if errors else sys.stdout).isatty()
    return Console(stderr=errors, highlight=False, record=record, width=None if terminal else WIDTH_OF_A_FILE)


def make_table(*heads: str, right: Collection[str] = (), title: str | None = None) -> Table:
    """A table without lines, to be filled. right: heads of the columns whose cells end at the right, as numbers do."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for head in heads:
        table.add_column(head, justify="right" if head in right else "left")
    return table


def escape_controls(text: str) -> str:
    """Text of others, such as labels of a server, with control characters as JSON escapes them: JSON stays JSON."""
    return CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def escape_markup(text: str) -> str:
    """The same as rich markup that has no style."""
    from rich.markup import escape

    return escape(escape_controls(text))


def print_note(bundle: str, note: str) -> None:
    """Print what a bundle says of its answers, if anything: dimmed, on stderr, since stdout is for the answers, and unbroken, so that a
    command in it can be copied."""
    if note:
        make_console(errors=True).print(f"[dim]{escape_markup(f'{bundle}: {note}')}[/]", soft_wrap=True)


def format_bytes(count: float) -> str:
    """Bytes for a reader: `11.4 MB`."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def counted(count: int, noun: str) -> str:
    """A number of things: `1 label`, `10 labels`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
