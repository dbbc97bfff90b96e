"""Which programs a process has started."""

from __future__ import annotations

import time

import psutil

NAMED_S = 10.0


def children(program: str, parent: int | None = None) -> list[psutil.Process]:
    """Those with `program` among the words of their command, of this process by default; one that has just ended is left out."""
    return [child for child in psutil.Process(parent).children() if program in command(child)]


def copies(program: str, parent: int | None = None) -> list[psutil.Process]:
    """Copies of the templates of `program` that a process has started (`models.media.copies`)."""
    return [copy for template in children(program, parent) for copy in children(program, template.pid)]


def command(process: psutil.Process) -> list[str]:
    """Its words; none if it has ended. The system shows none either for the first moment of a program, in which this waits."""
    until = time.monotonic() + NAMED_S
    try:
        while not (words := process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
            time.sleep(0.001)
    except psutil.Error:
        return []
    return list(words)
