"""Ctrl-C that is not lost: Python drops the KeyboardInterrupt that strikes inside a finalizer, and a command would go on. And SIGTERM that
leaves nothing behind."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def exit_cleanly_on_sigterm() -> None:
    """From here on SIGTERM ends this process as an exception does: temporary folders go."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


def exit_now() -> NoReturn:
    """End this process at once, as interrupted: Python would wait for threads whose requests hang."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # pressed again while nobody reads what is flushed
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(INTERRUPTED)


@contextmanager
def pending_interrupt() -> Iterator[Callable[[], None]]:
    """Inside the `with` block of the main thread, what it yields raises KeyboardInterrupt if Ctrl-C has been pressed before."""
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
