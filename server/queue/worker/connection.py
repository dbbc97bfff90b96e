"""A worker's connections to Redis, one a thread: its scripts, its clock, and how long it keeps trying."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import redis

from server.queue.connect import CHUNK_BYTES, VALUE_TTL_MS, RedisUnavailable, as_unavailable, connect, survives
from server.queue.keys import Keyspace
from server.queue.script import ArgsT, ResultT, Script, encode_command

T = TypeVar("T")

WRITE_PIECE = Script("write_piece", tuple[str, int, int], bytes)
MAX_BLOCK_S = 2.0
RETRY_S = 0.05


@dataclass(frozen=True)
class WorkerTimings:
    """Seconds; the defaults are the service's contract, tests shorten them."""

    key_ttl: float = 3.0
    """How long `worker:<id>` outlives its last refresh."""
    absence_grace: float = 6.0
    """Keys of living gateways and workers may have expired while Redis was unavailable: only later does their absence mean death."""
    retry_timeout: float = 30.0
    """How long results are held while Redis is unavailable."""
    janitor_every: float = 30.0


class WorkerRedisLink:
    """Connections of any number of threads. Raises RedisUnavailable for what Redis cannot do now; other errors are redis-py's."""

    def __init__(self, url: str, keyspace: Keyspace, timings: WorkerTimings) -> None:
        self.timings = timings
        self.name = keyspace.name
        self.service_name = keyspace.service
        self._client = connect(url, blocking=MAX_BLOCK_S)  # closes its pool when it is forgotten
        self._pool: Any = self._client.connection_pool
        self._local = threading.local()
        self._open: set[Any] = set()
        self._reliable_from = 0.0
        self._clock_offset_ms = time.time() * 1000 - time.monotonic() * 1000
        """Redis' clock less this machine's monotonic one; this machine's wall clock until the first look at the queue."""

    def run(self, script: Script[ArgsT, ResultT], args: ArgsT, messages: Iterable[bytes] = ()) -> ResultT:
        return self.send(script, args, messages)()

    def command(self, *arguments: Any) -> Any:
        """Return the answer as Redis sent it."""
        return self._send(self._connection(), *arguments)()

    def send(self, script: Script[ArgsT, ResultT], args: ArgsT, messages: Iterable[bytes] = ()) -> Callable[[], ResultT]:
        """Send a script, and return a function that reads the answer, before this thread's next command.

        It goes with its source if this connection has not sent that: one whose answer is read late would be refused."""
        connection = self._connection()
        command = ("EVALSHA", script.sha) if script in self._local.scripts else ("EVAL", script.source)
        self._local.scripts.add(script)
        arguments = (1, self.name(""), *script.arguments(args, messages))
        answer = self._send(connection, *command, *arguments)

        def read() -> ResultT:
            try:
                return script.read(answer())
            except redis.exceptions.NoScriptError:  # Redis has forgotten it
                return script.read(self.command("EVAL", script.source, *arguments))

        return read

    def send_without_reply(self, *arguments: Any) -> None:
        """Send a command; its answer is read with that of this thread's next command."""
        answer = self._send(self._connection(), *arguments)  # first: it makes the connection, and reads earlier unread answers
        self._local.unread.append(answer)

    def read_large(self, key: str) -> bytes:
        """Return a value, read in pieces; empty if there is none."""
        pieces: list[bytes] = []
        while not pieces or len(pieces[-1]) == CHUNK_BYTES:
            at = len(pieces) * CHUNK_BYTES
            pieces.append(self.command("GETRANGE", self.name(key), at, at + CHUNK_BYTES - 1))
        return b"".join(pieces)

    def write_large(self, key: str, data: bytes) -> None:
        """Write a value in pieces, trying for `retry_timeout`. A piece may be written twice."""
        for at in range(0, len(data), CHUNK_BYTES):
            piece = data[at : at + CHUNK_BYTES]
            self.retry(lambda at=at, piece=piece: self.run(WRITE_PIECE, (key, at, VALUE_TTL_MS), [piece]))  # type: ignore[misc]

    def close(self) -> None:
        for connection in self._open:
            connection.disconnect()

    def retry(self, call: Callable[[], T]) -> T:
        """Call again and again for `retry_timeout`, since no other process has the results. Then raise RedisUnavailable."""
        until = time.monotonic() + self.timings.retry_timeout
        while True:
            try:
                return call()
            except RedisUnavailable:
                if time.monotonic() > until:
                    raise
                time.sleep(RETRY_S)

    @property
    def is_absence_reliable(self) -> bool:
        """Whether a key that is absent means that its owner is dead."""
        return time.monotonic() >= self._reliable_from

    def set_clock(self, redis_ms: int, at: float | None = None) -> None:
        """Set what Redis' clock showed at `at`, in `time.monotonic()`; None: just now."""
        self._clock_offset_ms = redis_ms - (time.monotonic() if at is None else at) * 1000

    def monotonic(self, redis_ms: int) -> float:
        """Return a time on Redis' clock as one of `time.monotonic()`."""
        return (redis_ms - self._clock_offset_ms) / 1000

    def _send(self, connection: Any, *arguments: Any) -> Callable[[], Any]:
        self._attempt(connection, lambda: connection.send_packed_command([encode_command(arguments)], check_health=False))
        unread, self._local.unread = self._local.unread, []

        def read() -> Any:
            for answer in unread:  # came before it
                with suppress(redis.exceptions.ResponseError, RedisUnavailable):
                    answer()
            return self._attempt(connection, connection.read_response)

        return read

    def _connection(self) -> Any:
        """Return this thread's own."""
        if (connection := getattr(self._local, "connection", None)) is None:
            connection = self._pool.connection_class(**self._pool.connection_kwargs)
            self._attempt(connection, connection.connect)
            self._open.add(connection)
            self._local.connection = connection
            self._local.scripts = set[Script[Any, Any]]()
            self._local.unread = list[Callable[[], Any]]()
        return connection

    def _attempt(self, connection: Any, call: Callable[[], T]) -> T:
        try:
            return call()
        except BaseException as error:
            if not survives(error):
                self._local.connection = None
                self._open.discard(connection)
                connection.disconnect()
            if (unavailable := as_unavailable(error)) is None:
                raise
            self._reliable_from = time.monotonic() + self.timings.absence_grace
            raise unavailable from error
