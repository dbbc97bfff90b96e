from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.supervisor.private_valkey import PrivateValkey
from tests.support import forked_program
from tests.support.redis import private_valkey


@pytest.fixture
def valkey() -> Iterator[PrivateValkey]:
    """An empty one of the test's own."""
    forked_program.prepare()
    with private_valkey() as server:
        yield server
