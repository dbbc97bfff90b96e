from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from server.supervisor.private_valkey import PrivateValkey
from tests.support.fake_worker import Worker, make_spec
from tests.support.gateway_process import Gateway, gateway_process
from tests.support.redis import private_valkey

LIMITS = {"max_body_bytes": 200_000, "max_images": 8, "max_pixels": 1_000_000}


class Shared(NamedTuple):
    gateway: Gateway
    worker: Worker
    redis_url: str


@pytest.fixture
def valkey() -> Iterator[PrivateValkey]:
    """An empty one of the test's own."""
    with private_valkey() as server:
        yield server


@pytest.fixture(scope="package")
def shared() -> Iterator[Shared]:
    """Gateway and worker for tests that leave them as they were."""
    with (
        private_valkey() as server,
        Worker(server.url, [make_spec()]) as worker,
        gateway_process(server.url, **LIMITS) as running,
    ):
        yield Shared(running, worker, server.url)


@pytest.fixture
def gateway(shared: Shared) -> Gateway:
    return shared.gateway


@pytest.fixture(scope="module")
def other(shared: Shared) -> Iterator[Gateway]:
    """Another gateway on the same Redis."""
    with gateway_process(shared.redis_url, **LIMITS) as running:
        yield running


@pytest.fixture
def worker(shared: Shared) -> Iterator[Worker]:
    """A worker that has finished the jobs of earlier tests."""
    shared.worker.finish_all()
    yield shared.worker
    shared.worker.resume()
