"""Reasons to stop a run before its end: a spent budget, or SIGTERM, which clusters send before they stop a node."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self


class StopRequests:
    """A context in which SIGTERM and SIGINT ask for a stop after the step that is running; a second SIGINT interrupts at once."""

    def __init__(self, max_steps: int | None, max_minutes: float | None) -> None:
        self._max_steps = max_steps
        self._max_minutes = max_minutes
        self._until: float | None = None
        self.count_from_now()
        self.signal: int | None = None
        """The first that asked for a stop."""
        self._before: dict[int, Any] = {}

    def count_from_now(self) -> None:
        """Restart the minutes of the budget."""
        if self._max_minutes is not None:
            self._until = time.monotonic() + 60 * self._max_minutes

    def should_stop(self, step: int) -> bool:
        spent = self._max_steps is not None and step >= self._max_steps
        return self.signal is not None or spent or (self._until is not None and time.monotonic() >= self._until)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number


def ignore_stop_signals(worker: int) -> None:
    """Ignore SIGTERM and SIGINT in a data worker. Terminals, torchrun and clusters send them to every process of a run, and the loop,
    which stops after its step, needs the worker until then. A worker ends with the loop, also where that was killed."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
