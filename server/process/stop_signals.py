"""SIGTERM and SIGINT as something that the main thread waits for."""

from __future__ import annotations

import os
import select
import signal


class StopSignals:
    """Catches both from its creation on. A handler that sets an Event could deadlock on the Event's own lock; a byte in a pipe cannot."""

    def __init__(self) -> None:
        self._reader, writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(writer, False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def wait(self, seconds: float | None = None) -> bool:
        """True as soon as a signal comes, one for each; False after `seconds`."""
        ready, _, _ = select.select([self._reader], [], [], seconds)
        if not ready:
            return False
        os.read(self._reader, 1)
        return True
