"""What asks a process to stop, as something that the main thread waits for, and the end of a child as something that wakes it."""

from __future__ import annotations

import os
import select
import signal


class StopSignals:
    """Catches SIGTERM, SIGINT and the loss of the terminal from its creation on. A handler that sets an Event could deadlock on the Event's
    own lock; a byte in a pipe cannot."""

    def __init__(self, *, children: bool = False) -> None:
        """children: whether a child that ends should cut a `wait` short."""
        self._reader, writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(writer, False)
        hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]  # `nohup`: it does not matter
        for number in (signal.SIGTERM, signal.SIGINT, *hang_up, *([signal.SIGCHLD] if children else [])):
            signal.signal(number, lambda _number, _frame: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._hung_up = False

    def wait(self, seconds: float | None = None, also: int | None = None) -> bool:
        """True as soon as a signal to stop comes, one for each; False after `seconds`, or as soon as a child has ended or the file
        descriptor `also` can be read.

        A terminal is lost once, however often that is said: by the shell, and by the kernel when the shell has ended."""
        ready, _, _ = select.select([self._reader] if also is None else [self._reader, also], [], [], seconds)
        if self._reader not in ready:
            return False
        number = os.read(self._reader, 1)[0]
        if number == signal.SIGHUP:
            known, self._hung_up = self._hung_up, True
            return not known
        return number != signal.SIGCHLD
