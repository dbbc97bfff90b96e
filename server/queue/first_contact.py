"""The log of a process that waits for a Redis that it has never reached: a wrong address looks like a server that is late."""

from __future__ import annotations

import logging
import time

from server.queue.connect import without_secrets
from server.queue.errors import RedisUnavailable

log = logging.getLogger(__name__)

LOG_EVERY_S = 10.0


class FirstContact:
    """A log, every ten seconds until the first success, of the address that was tried, how often and for how long."""

    def __init__(self, url: str) -> None:
        self._address = without_secrets(url)
        self._tries = 0
        self._started = self._logged = time.monotonic()
        self._is_reached = False

    def log_failure(self, reason: RedisUnavailable) -> None:
        self._tries += 1
        now = time.monotonic()
        if not self._is_reached and now - self._logged >= LOG_EVERY_S:
            self._logged = now
            waited = now - self._started
            log.warning("still waiting for Redis at %s: %d tries in %.0f s; the last one: %s", self._address, self._tries, waited, reason)

    def mark_reached(self) -> None:
        self._is_reached = True
