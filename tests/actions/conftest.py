from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.actions.bundles import write_watcher
from tests.actions.service import Watching
from tests.gateway import service
from tests.gateway.service import Gateway, eventually
from tests.open_inference.service import worker_process

START_S = 240.0
"""A worker imports torch and ONNX Runtime and looks at a few frames, which takes its time on a busy machine."""


@pytest.fixture(scope="package")
def watching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watching]:
    """A service whose worker serves `watcher`: MoveNet and a small LART with random weights."""
    bundles = tmp_path_factory.mktemp("bundles")
    write_watcher(bundles)
    with service.valkey() as valkey, service.gateway(valkey.url) as started, worker_process(valkey.url, bundles) as worker:
        eventually(lambda: started.metric("opsin_workers", state="ready") == 1, "a ready worker", START_S)
        yield Watching(started, worker.pid)


@pytest.fixture
def gateway(watching: Watching) -> Gateway:
    return watching.gateway
