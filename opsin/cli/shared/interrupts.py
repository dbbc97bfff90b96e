"""Handling of Ctrl-C and SIGTERM. Python drops a KeyboardInterrupt that is raised in a finalizer, and the command would continue; SIGTERM
would leave temporary folders behind."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def exit_cleanly_on_sigterm() -> None:
    """Make SIGTERM end this process by an exception, so that temporary folders are deleted."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


def exit_now() -> NoReturn:
    """End this process at once, as interrupted: Python would wait for threads whose requests hang."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C again ends it even if the flush blocks
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # the reader has closed it
            stream.flush()
    os._exit(EXIT_INTERRUPTED)


@contextmanager
def pending_interrupt() -> Iterator[Callable[[], None]]:
    """Yield a function that raises KeyboardInterrupt if Ctrl-C has been pressed inside the block. Use it in the main thread."""
    pressed = False

    def press(_number: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, press)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
