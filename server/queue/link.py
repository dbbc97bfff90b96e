"""A worker's connection to Redis: its scripts, its clock, and how long it keeps trying."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from server.queue.connect import away_is_one_error, connect
from server.queue.errors import RedisAway
from server.queue.keys import Keyspace
from server.queue.wire import Wire

T = TypeVar("T")

MAX_BLOCK_S = 2.0
RETRY_S = 0.05


@dataclass(frozen=True)
class WorkerTimings:
    """Seconds; the defaults are the service's contract, tests shorten them."""

    key_ttl: float = 3.0
    """How long `worker:<id>` outlives its last refresh."""
    absence_settles: float = 6.0
    """After Redis was away the keys of living gateways and workers may have expired: only later does their absence mean death."""
    patience: float = 30.0
    """How long results are held while Redis is away."""
    janitor_every: float = 30.0


class Link:
    """For any number of threads."""

    def __init__(self, url: str, keyspace: Keyspace, timings: WorkerTimings) -> None:
        self.timings = timings
        self._wire = Wire(connect(url, blocking=MAX_BLOCK_S), keyspace)
        self.name = keyspace.name
        self.service_name = keyspace.service
        self._absence_counts_from = 0.0
        self._clock_offset_ms: float | None = None

    def script(self, name: str, *arguments: Any) -> Any:
        """One of the queue's scripts, or RedisAway."""
        return self.once(lambda: self._wire.script(name, *arguments))

    def send_script(self, name: str, *arguments: Any) -> Callable[[], Any]:
        """A script that is on its way when this returns; what it returns reads the answer, before this thread's next command. RedisAway."""
        answer = self.once(lambda: self._wire.send_script(name, *arguments))
        return lambda: self.once(answer)

    def command(self, *words: Any) -> Any:
        """One command, or RedisAway; the answer as Redis sent it."""
        return self.once(lambda: self._wire.command(*words))

    def send(self, *words: Any) -> Callable[[], Any]:
        """The same as `send_script`, of one command."""
        answer = self.once(lambda: self._wire.send(*words))
        return lambda: self.once(answer)

    def close(self) -> None:
        self._wire.close()

    def once(self, call: Callable[[], T]) -> T:
        """A call that may do several things, or RedisAway."""
        try:
            with away_is_one_error():
                return call()
        except RedisAway:
            self._absence_counts_from = time.monotonic() + self.timings.absence_settles
            raise

    def patiently(self, call: Callable[[], T]) -> T:
        """Again and again for `patience`, since nobody else has the results. Then RedisAway."""
        until = time.monotonic() + self.timings.patience
        while True:
            try:
                return self.once(call)
            except RedisAway:
                if time.monotonic() > until:
                    raise
                time.sleep(RETRY_S)

    @property
    def absence_counts(self) -> bool:
        """Whether a key that is absent means that its owner is dead."""
        return time.monotonic() >= self._absence_counts_from

    def set_clock(self, redis_ms: int) -> None:
        self._clock_offset_ms = redis_ms - time.monotonic() * 1000

    def now_ms(self) -> float | None:
        """Redis' clock, as of the last script that told it. None before it."""
        return None if self._clock_offset_ms is None else time.monotonic() * 1000 + self._clock_offset_ms

    def monotonic(self, redis_ms: int) -> float:
        """A time on Redis' clock as one of `time.monotonic()`; now, while its clock is unknown."""
        offset = self._clock_offset_ms
        return time.monotonic() if offset is None else (redis_ms - offset) / 1000
