"""A worker's connections to Redis, one a thread: its scripts, its clock, and how long it keeps trying."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import redis

from server.queue.connect import away, connect
from server.queue.errors import RedisAway
from server.queue.keys import Keyspace
from server.queue.resp import goes_on, packed
from server.queue.script import ArgsT, ResultT, Script

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
    """For any number of threads. What Redis cannot do now is RedisAway; other errors are redis-py's."""

    def __init__(self, url: str, keyspace: Keyspace, timings: WorkerTimings) -> None:
        self.timings = timings
        self.name = keyspace.name
        self.service_name = keyspace.service
        self._client = connect(url, blocking=MAX_BLOCK_S)  # closes its pool when it is forgotten
        self._pool: Any = self._client.connection_pool
        self._of_thread = threading.local()
        self._open: set[Any] = set()
        self._absence_counts_from = 0.0
        self._clock_offset_ms = time.time() * 1000 - time.monotonic() * 1000
        """Redis' clock less this machine's monotonic one; this machine's wall clock until the first look at the queue tells it."""

    def run(self, script: Script[ArgsT, ResultT], args: ArgsT, messages: Iterable[bytes] = ()) -> ResultT:
        return self.send(script, args, messages)()

    def command(self, *words: Any) -> Any:
        """One command; the answer as Redis sent it."""
        return self._send(self._connection(), *words)()

    def send(self, script: Script[ArgsT, ResultT], args: ArgsT, messages: Iterable[bytes] = ()) -> Callable[[], ResultT]:
        """A script that is on its way when this returns; what it returns reads the answer, before this thread's next command.

        It goes with its source where this connection has not sent that: one whose answer is read late would be refused."""
        connection = self._connection()
        begin = ("EVALSHA", script.sha) if script in self._of_thread.scripts else ("EVAL", script.source)
        self._of_thread.scripts.add(script)
        arguments = (1, self.name(""), *script.arguments(args, messages))
        answer = self._send(connection, *begin, *arguments)

        def read() -> ResultT:
            try:
                return script.read(answer())
            except redis.exceptions.NoScriptError:  # Redis has forgotten it
                return script.read(self.command("EVAL", script.source, *arguments))

        return read

    def post(self, *words: Any) -> None:
        """A command whose answer nobody waits for: it is read with that of this thread's next command."""
        answer = self._send(self._connection(), *words)  # first: it makes the connection, and reads what was posted before
        self._of_thread.posted.append(answer)

    def close(self) -> None:
        for connection in self._open:
            connection.disconnect()

    def patiently(self, call: Callable[[], T]) -> T:
        """Again and again for `patience`, since nobody else has the results. Then RedisAway."""
        until = time.monotonic() + self.timings.patience
        while True:
            try:
                return call()
            except RedisAway:
                if time.monotonic() > until:
                    raise
                time.sleep(RETRY_S)

    @property
    def absence_counts(self) -> bool:
        """Whether a key that is absent means that its owner is dead."""
        return time.monotonic() >= self._absence_counts_from

    def set_clock(self, redis_ms: int, at: float | None = None) -> None:
        """Redis' clock showed this at `at`, in `time.monotonic()`; None: just now."""
        self._clock_offset_ms = redis_ms - (time.monotonic() if at is None else at) * 1000

    def monotonic(self, redis_ms: int) -> float:
        """A time on Redis' clock, as of the last script that told it, as one of `time.monotonic()`."""
        return (redis_ms - self._clock_offset_ms) / 1000

    def _send(self, connection: Any, *words: Any) -> Callable[[], Any]:
        self._attempt(connection, lambda: connection.send_packed_command([packed(words)], check_health=False))
        posted, self._of_thread.posted = self._of_thread.posted, []

        def read() -> Any:
            for answer in posted:  # came before it
                with suppress(redis.exceptions.ResponseError, RedisAway):
                    answer()
            return self._attempt(connection, connection.read_response)

        return read

    def _connection(self) -> Any:
        """This thread's own."""
        if (connection := getattr(self._of_thread, "connection", None)) is None:
            connection = self._pool.connection_class(**self._pool.connection_kwargs)
            self._attempt(connection, connection.connect)
            self._open.add(connection)
            self._of_thread.connection = connection
            self._of_thread.scripts = set[Script[Any, Any]]()
            self._of_thread.posted = list[Callable[[], Any]]()
        return connection

    def _attempt(self, connection: Any, call: Callable[[], T]) -> T:
        try:
            return call()
        except BaseException as error:
            if not goes_on(error):
                self._of_thread.connection = None
                self._open.discard(connection)
                connection.disconnect()
            if (why := away(error)) is None:
                raise
            self._absence_counts_from = time.monotonic() + self.timings.absence_settles
            raise why from error
