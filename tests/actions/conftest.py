from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.actions.bundles import write_watcher
from tests.gateway.service import Gateway
from tests.open_inference.service import running


@pytest.fixture(scope="package")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Of a service whose worker serves `watcher`: MoveNet and a small LART with random weights."""
    bundles = tmp_path_factory.mktemp("bundles")
    write_watcher(bundles)
    with running(bundles, gateways=1, workers=1) as started:
        yield started.gateway
