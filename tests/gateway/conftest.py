from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.queue.embedded import PrivateValkey
from tests.gateway import service
from tests.gateway.service import Gateway, Worker, make_spec


@pytest.fixture
def valkey() -> Iterator[PrivateValkey]:
    """An empty one of the test's own."""
    with service.valkey() as server:
        yield server


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Gateway, Worker]]:
    """Gateway and worker for tests that leave them as they were."""
    with (
        service.valkey() as server,
        Worker(server.url, [make_spec()]) as worker,
        service.gateway(server.url, max_body_bytes=200_000, max_images=8, max_pixels=1_000_000) as running,
    ):
        yield running, worker


@pytest.fixture
def gateway(shared: tuple[Gateway, Worker]) -> Gateway:
    return shared[0]


@pytest.fixture
def worker(shared: tuple[Gateway, Worker]) -> Iterator[Worker]:
    yield shared[1]
    shared[1].resume()
