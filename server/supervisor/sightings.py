"""What Redis tells the supervisor about its children: who lives, who is ready. A thread of its own, for Redis may not answer."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import msgspec
import redis

from server.queue import keys
from server.queue.connect import AWAY, connect
from server.queue.identity import process_prefix
from server.queue.job import UnknownVersion, WorkerInfo, decode_worker
from server.supervisor.children import Death

OFTEN = 0.1
SELDOM = 0.5


class Sightings:
    def __init__(self, url: str) -> None:
        self._redis = connect(url)
        self._lock = threading.Lock()
        self._workers: dict[str, WorkerInfo] = {}
        self._gateways: set[str] = set()
        self.every = OFTEN
        """Seconds between two looks: often while somebody waits for the service, seldom later."""
        self.away_since: float | None = None
        """When Redis stopped answering; what it knew of our children may have expired."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_forever, name="sightings", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._ended.set()

    def worker(self, pid: int) -> WorkerInfo | None:
        """What the worker with this pid says of itself, if it lives."""
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
        prefix = process_prefix(death.pid)
        with suppress(*AWAY):
            gone = [id_ for id_ in self._members() if id_.startswith(prefix)]
            if gone:
                self._redis.delete(*map(keys.worker, gone))
            with suppress(redis.ResponseError):  # a Redis that is full refuses to count, no more
                self._redis.hincrby(keys.RESTARTS, death.reason, 1)

    def _look_forever(self) -> None:
        while not self._ended.wait(self.every):
            try:
                self._look()
            except AWAY:
                self.away_since = self.away_since or time.monotonic()

    def _look(self) -> None:
        members = self._members()
        messages = self._redis.mget([keys.worker(id_) for id_ in members]) if members else []
        workers: dict[str, WorkerInfo] = {}
        for id_, message in zip(members, messages, strict=True):
            with suppress(UnknownVersion, msgspec.MsgspecError):
                if isinstance(message, bytes):
                    workers[id_] = decode_worker(message)
        gateways = {key.decode().partition(":")[2] for key in self._redis.scan_iter(match=keys.gateway("*"), count=1000)}
        with self._lock:
            self._workers, self._gateways = workers, gateways
        self.away_since = None

    def _members(self) -> list[str]:
        return [member.decode() for member in self._redis.smembers(keys.WORKERS) if isinstance(member, bytes)]
