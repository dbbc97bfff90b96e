from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from models.bundle_schema import QuerySpace
from models.systems.pipeline_bundles import write_photo_pipeline
from tests.support.bundles.analytic_mcc import write_shell
from tests.support.bundles.onnx import write_teller
from tests.support.bundles.vit import write_tiny_vit
from tests.support.images import CAPTURE, FOV
from tests.support.live_service import SMALL_LIMITS, running
from tests.support.task_clients import Sculptor

SPACE = QuerySpace(spacing=0.2, reach=0.2, margin=4)
"""30³ cells, every second one asked first."""


@pytest.fixture(scope="package")
def sculptor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sculptor]:
    """Two gateways and a worker with four models: `shell` finds a sphere in everything, `hall` the same in a half ball,
    `photographed` also takes images without depth, and `tiny` classifies."""
    bundles = tmp_path_factory.mktemp("bundles")
    write_shell(bundles, space=SPACE)
    write_shell(bundles, "hall", space=QuerySpace(region="half-ball", extent=3.0, spacing=0.2, reach=0.2, source_size=64))
    write_tiny_vit(bundles)
    write_photo_pipeline(bundles, "photographed", "1", write_shell(bundles, "member"), write_teller(bundles))
    settings = {"default_models": {"reconstruct": "shell"}, "max_points": 10_000, "max_queries": 200_000}
    with running(bundles, gateways=2, **SMALL_LIMITS, **settings) as started:
        for gateway in started.gateways:  # its child imports scikit-image, which takes its time on a busy machine
            files = {name: (name, content) for name, content in CAPTURE.items()}
            httpx2.post(f"{gateway.url}/v1/reconstruct", files=files, data={"fov": FOV}, timeout=120).raise_for_status()
        yield Sculptor(started)
