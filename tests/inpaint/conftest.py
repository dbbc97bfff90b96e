from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.bundles.vit import write_tiny_diffmae, write_tiny_vit
from tests.support.live_service import SMALL_LIMITS, running
from tests.support.task_clients import Painter


@pytest.fixture(scope="package")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Painter]:
    """Two gateways and a worker that serves `painter`, which fills 16 x 16 pixels, and `tiny`, which classifies."""
    bundles = tmp_path_factory.mktemp("bundles")
    write_tiny_diffmae(bundles)
    write_tiny_vit(bundles)
    with running(bundles, gateways=2, default_models={"inpaint": "painter", "classify": "tiny"}, **SMALL_LIMITS) as started:
        yield Painter(started)
