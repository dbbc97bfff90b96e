"""Asks Redis which children of the supervisor live and are ready; in a thread of its own, for Redis may not answer."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import msgspec
import redis

from server.processes.supervisor_protocol import process_prefix
from server.queue import keys
from server.queue.connect import connect
from server.queue.keys import Keyspace
from server.queue.messages import UnknownVersion, WorkerInfo, decode
from server.supervisor.child_processes import Death

OFTEN = 0.1
SELDOM = 0.5
NOTHING = "nothing"
"""A key that is never set. Deleting it changes nothing, but is refused where writes are."""


class Sightings:
    def __init__(self, url: str, keyspace: Keyspace) -> None:
        self._redis = connect(url)
        self._keyspace = keyspace
        self._lock = threading.Lock()
        self._workers: dict[str, WorkerInfo] = {}
        self._gateways: set[str] = set()
        self._dead: deque[Death] = deque()
        """Workers to bury, the oldest first: they wait while Redis is away."""
        self.every = OFTEN
        """Seconds between two looks: often while somebody waits for the service, seldom later."""
        self.away_since: float | None = None
        """When Redis began to refuse what our children write, or to say nothing at all: what it knew of them may have expired."""
        self.silent_since: float | None = None
        """When Redis stopped answering. One that answers with a refusal does not hang."""
        self._wake = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._look_forever, name="sightings", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._ended = True
        self._wake.set()

    def worker(self, pid: int) -> WorkerInfo | None:
        """The record of the worker with this pid, if it lives."""
        prefix = process_prefix(pid)
        with self._lock:
            return next((info for id_, info in self._workers.items() if id_.startswith(prefix)), None)

    def gateway(self, pid: int) -> bool:
        """Whether the gateway with this pid lives."""
        prefix = process_prefix(pid)
        with self._lock:
            return any(id_.startswith(prefix) for id_ in self._gateways)

    def bury_worker(self, death: Death) -> None:
        """Let the others take its jobs at once, instead of when its key expires, and count it for the gateways' metrics."""
        self._dead.append(death)
        self._wake.set()

    def _look_forever(self) -> None:
        while not self._ended:
            try:
                self._bury()
                self._look()
            except redis.RedisError as error:
                if isinstance(error, redis.exceptions.ReadOnlyError):
                    self._redis.connection_pool.disconnect()  # no master any more: a new connection may find the new one
                now = time.monotonic()
                self.away_since = self.away_since or now
                self.silent_since = (self.silent_since or now) if _says_nothing(error) else None
            else:
                self.away_since = self.silent_since = None
            self._wake.wait(self.every)
            self._wake.clear()

    def _bury(self) -> None:
        while self._dead:
            death = self._dead[0]
            prefix = process_prefix(death.pid)
            gone = [id_ for id_ in self._members(keys.WORKERS) if id_.startswith(prefix)]
            self._redis.delete(*self._names(keys.worker, gone), self._keyspace.name(NOTHING))
            with suppress(redis.ResponseError):  # a Redis that is full refuses to count, no more
                if not death.stopped:
                    self._redis.hincrby(self._keyspace.service(keys.RESTARTS), death.reason, 1)
            self._dead.popleft()

    def _look(self) -> None:
        """Read who is there, and see whether Redis accepts what they write: if not, their absence tells nothing."""
        ids, gateway_ids = self._members(keys.WORKERS), self._members(keys.GATEWAYS)
        names = [*self._names(keys.worker, ids), *self._names(keys.gateway, gateway_ids)]
        found = self._redis.mget(names) if names else []
        workers: dict[str, WorkerInfo] = {}
        for id_, message in zip(ids, found[: len(ids)], strict=True):
            with suppress(UnknownVersion, msgspec.MsgspecError):
                if isinstance(message, bytes):
                    workers[id_] = decode(WorkerInfo, message)
        gateways = {id_ for id_, sign in zip(gateway_ids, found[len(ids) :], strict=True) if sign is not None}
        with self._lock:
            self._workers, self._gateways = workers, gateways
        self._redis.delete(self._keyspace.name(NOTHING))

    def _names(self, of: Callable[[str], str], ids: list[str]) -> list[str]:
        return [self._keyspace.name(of(id_)) for id_ in ids]

    def _members(self, key: str) -> list[str]:
        return [member.decode(errors="replace") for member in self._redis.smembers(self._keyspace.name(key)) if isinstance(member, bytes)]


def _says_nothing(error: redis.RedisError) -> bool:
    """redis-py counts a server that says it is still loading its data among the connections that failed."""
    silence = redis.exceptions.ConnectionError | redis.exceptions.TimeoutError
    return isinstance(error, silence) and not isinstance(error, redis.exceptions.BusyLoadingError)
