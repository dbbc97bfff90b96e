"""A Valkey of a test's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from server.supervisor.private_valkey import PrivateValkey


@contextmanager
def private_valkey() -> Iterator[PrivateValkey]:
    server = PrivateValkey()
    server.start()
    try:
        yield server
    finally:
        server.stop()
