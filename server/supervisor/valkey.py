"""The private Valkey, kept alive."""

from __future__ import annotations

import time

from server.supervisor.children import longer
from server.supervisor.private_valkey import NoValkey, PrivateValkey
from server.telemetry import logs

log = logs.get(__name__)

HUNG = 10.0
"""Seconds without an answer after which it is killed."""


class KeptValkey:
    """Replaced by an empty one when it dies or hangs; the gateways send their jobs again."""

    def __init__(self, valkey: PrivateValkey) -> None:
        self._valkey = valkey
        self._pause = 0.0
        self._started_at = self._start_at = time.monotonic()

    def mend(self, silent_since: float | None) -> None:
        """From the main thread. silent_since: monotonic seconds since when it has not answered; None if it answers."""
        now = time.monotonic()
        if now < self._start_at:
            return
        process = self._valkey.process
        status = process.poll()
        if status is None and silent_since is not None and now - max(silent_since, self._started_at) > HUNG:
            log.error("Valkey hangs: killing it", pid=process.pid)
            process.kill()
            status = process.wait()
        if status is not None:
            log.error("Valkey died: starting an empty one, the gateways send their jobs again", status=status)
            self._start()

    def _start(self) -> None:
        try:
            self._valkey.start()
        except NoValkey as error:
            self._pause = longer(self._pause)
            log.error("Valkey does not start", reason=str(error), next_try_in=self._pause)
        else:
            self._pause = 0.0
        self._started_at = time.monotonic()
        self._start_at = self._started_at + self._pause
