"""What tests of every package may use: a real, private Valkey, started once and emptied for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from server.queue.embedded import PrivateValkey


@pytest.fixture(scope="session")
def valkey() -> Iterator[PrivateValkey]:
    server = PrivateValkey()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def url(valkey: PrivateValkey) -> str:
    """The URL of an empty Valkey."""
    with redis.Redis(unix_socket_path=str(valkey.socket)) as client:
        client.flushall()
    return valkey.url
