from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.supervisor.private_valkey import PrivateValkey
from tests.harness import forked
from tests.harness.valkey import private_valkey


@pytest.fixture
def valkey() -> Iterator[PrivateValkey]:
    """An empty one of the test's own."""
    forked.prepare()
    with private_valkey() as server:
        yield server
