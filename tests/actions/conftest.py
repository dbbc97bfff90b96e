from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.bundles.actions import write_watcher
from tests.support.gateway_process import Gateway
from tests.support.live_service import Service, running


@pytest.fixture(scope="package")
def watching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose worker serves `watcher`: MoveNet and a small LART with random weights."""
    bundles = tmp_path_factory.mktemp("bundles")
    write_watcher(bundles)
    with running(bundles) as started:
        yield started


@pytest.fixture
def gateway(watching: Service) -> Gateway:
    return watching.gateway
