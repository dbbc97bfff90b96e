"""Liveness of the supervisor's children, read from Redis by a thread, since Redis may not answer."""

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
from server.supervisor.child_processes import ProcessExit

FAST_POLL_S = 0.1
SLOW_POLL_S = 0.5
WRITE_PROBE_KEY = "nothing"
"""A key that is never set. Deleting it changes nothing, but is rejected if writes are."""


class LivenessMonitor:
    def __init__(self, url: str, keyspace: Keyspace) -> None:
        self._redis = connect(url)
        self._keyspace = keyspace
        self._lock = threading.Lock()
        self._workers: dict[str, WorkerInfo] = {}
        self._gateways: set[str] = set()
        self._dead: deque[ProcessExit] = deque()
        """Dead workers to withdraw, the oldest first: they wait while Redis is unavailable."""
        self.poll_interval_s = FAST_POLL_S
        """Time between two polls: short while the service starts, longer later."""
        self.unavailable_since: float | None = None
        """Time when Redis began to reject our children's writes, or to be silent: its records of them may have expired."""
        self.silent_since: float | None = None
        """Time when Redis stopped answering. One that answers with an error does not hang."""
        self._wake = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._poll_forever, name="liveness", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._ended = True
        self._wake.set()

    def worker(self, pid: int) -> WorkerInfo | None:
        """Return the record of the worker with this pid, if it lives."""
        prefix = process_prefix(pid)
        with self._lock:
            return next((info for id_, info in self._workers.items() if id_.startswith(prefix)), None)

    def gateway(self, pid: int) -> bool:
        """Return whether the gateway with this pid lives."""
        prefix = process_prefix(pid)
        with self._lock:
            return any(id_.startswith(prefix) for id_ in self._gateways)

    def withdraw_worker(self, process_exit: ProcessExit) -> None:
        """Return a dead worker's jobs at once, instead of when its key expires, and count it for the gateways' metrics."""
        self._dead.append(process_exit)
        self._wake.set()

    def _poll_forever(self) -> None:
        while not self._ended:
            try:
                self._withdraw_dead()
                self._poll()
            except redis.RedisError as error:
                if isinstance(error, redis.exceptions.ReadOnlyError):
                    self._redis.connection_pool.disconnect()  # no longer the master: a new connection may find the new one
                now = time.monotonic()
                self.unavailable_since = self.unavailable_since or now
                self.silent_since = (self.silent_since or now) if _is_silent(error) else None
            else:
                self.unavailable_since = self.silent_since = None
            self._wake.wait(self.poll_interval_s)
            self._wake.clear()

    def _withdraw_dead(self) -> None:
        while self._dead:
            process_exit = self._dead[0]
            prefix = process_prefix(process_exit.pid)
            gone = [id_ for id_ in self._members(keys.WORKERS) if id_.startswith(prefix)]
            self._redis.delete(*self._names(keys.worker, gone), self._keyspace.name(WRITE_PROBE_KEY))
            with suppress(redis.ResponseError):  # a Redis that is full only refuses to count
                if not process_exit.stopped:
                    self._redis.hincrby(self._keyspace.service(keys.RESTARTS), process_exit.reason, 1)
            self._dead.popleft()

    def _poll(self) -> None:
        """Read which processes live, and whether Redis accepts their writes: if not, a missing key means nothing."""
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
        self._redis.delete(self._keyspace.name(WRITE_PROBE_KEY))

    def _names(self, key_of: Callable[[str], str], ids: list[str]) -> list[str]:
        return [self._keyspace.name(key_of(id_)) for id_ in ids]

    def _members(self, key: str) -> list[str]:
        return [member.decode(errors="replace") for member in self._redis.smembers(self._keyspace.name(key)) if isinstance(member, bytes)]


def _is_silent(error: redis.RedisError) -> bool:
    """Return whether Redis did not answer. redis-py counts one that is still loading its data among the failed connections."""
    silence = redis.exceptions.ConnectionError | redis.exceptions.TimeoutError
    return isinstance(error, silence) and not isinstance(error, redis.exceptions.BusyLoadingError)
