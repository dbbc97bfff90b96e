from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.supervisor.private_valkey import PrivateValkey
from tests.worker import processes


@pytest.fixture
def valkey() -> Iterator[PrivateValkey]:
    """An empty one of the test's own."""
    with processes.valkey() as server:
        yield server
