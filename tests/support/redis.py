"""A private Valkey, and Redis as one cell sees it: tests name keys as docs/queue.md does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis

from server.queue.keys import CELL, REPOSITORY, RESTARTS, REVISION, Keyspace
from server.supervisor.private_valkey import PrivateValkey

KEYSPACE = Keyspace(cell=int(os.environ.get("OPSIN_TEST_CELL", "0")))
"""Keyspace of the tests in `tests/queue`; whole services are cell 0 unless a test sets another one."""

_SERVICE = {CELL, REPOSITORY, REVISION, RESTARTS}
_ONE_KEY = 1
_ALL_KEYS = -1
_KEYS = {"DEL": _ALL_KEYS, "EXISTS": _ALL_KEYS, "MGET": _ALL_KEYS, "UNLINK": _ALL_KEYS, "RENAME": 2}
_NONE = {"PING", "FLUSHALL", "TIME", "INFO", "SELECT", "DBSIZE"}
_KEYLESS = (
    "CONFIG",
    "CLIENT",
    "SCRIPT",
    "ACL",
    "CLUSTER",
    "DEBUG",
    "SHUTDOWN",
    "REPLICAOF",
    "SLAVEOF",
    "WAIT",
    "SENTINEL",
    "FUNCTION",
    "MONITOR",
)


class CellRedis(redis.Redis):
    """A client of the cell of `keyspace`, which is set after it was made."""

    keyspace = Keyspace()

    def execute_command(self, *words: Any, **options: Any) -> Any:
        command = words[0].upper()
        if command in _NONE or command.split()[0] in _KEYLESS:
            return super().execute_command(*words, **options)
        if command == "SCAN":
            cursor, found = super().execute_command("SCAN", words[1], *self._patterns(words[2:]), **options)
            return cursor, self._strip(found)
        if command == "KEYS":
            return self._strip(super().execute_command("KEYS", self._full(words[1]), **options))
        if command == "XREADGROUP":
            at = next(i for i, word in enumerate(words) if word in ("STREAMS", b"STREAMS")) + 1
            end = at + (len(words) - at) // 2
            return super().execute_command(*words[:at], *map(self._full, words[at:end]), *words[end:], **options)
        count = _KEYS.get(command, _ONE_KEY)
        end = len(words) if count == _ALL_KEYS else 1 + count
        return super().execute_command(words[0], *map(self._full, words[1:end]), *words[end:], **options)

    def _patterns(self, words: tuple[Any, ...]) -> list[Any]:
        """SCAN without a pattern finds the keys of the cell."""
        options = list(words)
        if b"MATCH" not in options:
            return [b"MATCH", self._full("*"), *options]
        at = options.index(b"MATCH") + 1
        return [*options[:at], self._full(options[at]), *options[at + 1 :]]

    def _full(self, key: Any) -> str | bytes:
        name: Callable[[str], str] = self.keyspace.service if key in _SERVICE else self.keyspace.name
        return name("").encode() + key if isinstance(key, bytes) else name(str(key))

    def _strip(self, found: list[Any]) -> list[Any]:
        return [name[len(self.keyspace.name("")) :] for name in found]


@contextmanager
def private_valkey() -> Iterator[PrivateValkey]:
    server = PrivateValkey()
    server.start()
    try:
        yield server
    finally:
        server.stop()
