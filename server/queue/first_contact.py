"""The log of a process that waits for a Redis that it has never reached: a wrong address looks like a server that is late."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from server.queue.connect import without_secrets
from server.queue.errors import RedisAway

log = logging.getLogger(__name__)

EVERY_S = 10.0


@dataclass
class FirstContact:
    """Logs every ten seconds which address was tried, how often and for how long, until the first success."""

    url: str
    _tries: int = 0
    _began: float = field(default_factory=time.monotonic)
    _logged: float = field(default_factory=time.monotonic)
    _made: bool = False

    def failed(self, reason: RedisAway) -> None:
        self._tries += 1
        now = time.monotonic()
        if self._made or now - self._logged < EVERY_S:
            return
        self._logged = now
        address, waited = without_secrets(self.url), now - self._began
        log.warning("still waiting for Redis at %s: %d tries in %.0f s; the last one: %s", address, self._tries, waited, reason)

    def made(self) -> None:
        self._made = True
