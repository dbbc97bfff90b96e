"""The console that commands print on."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDTH_OF_A_FILE = 120
"""Columns where stdout is no terminal and so has no width."""


def screen(*, errors: bool = False, record: bool = False) -> Console:
    """A rich console on stdout or stderr: colours and progress on a terminal, plain text of a readable width elsewhere."""
    from rich.console import Console

    terminal = (sys.stderr if errors else sys.stdout).isatty()
    return Console(stderr=errors, highlight=False, record=record, width=None if terminal else WIDTH_OF_A_FILE)


def size(count: float) -> str:
    """Bytes for a reader: `11.4 MB`."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
