from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.actions.conftest import START_S
from tests.actions.service import Watching
from tests.clips.bundles import NETWORKS, OF_SOUND, write_hearing, write_mavil, write_recorded
from tests.gateway import service
from tests.gateway.service import Gateway, eventually
from tests.open_inference.service import worker_process

PIXELS = 128 * 96
SECONDS = 60


@pytest.fixture(scope="package")
def watching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watching]:
    """A service whose worker serves a classifier of clips, or of clips and sound, of every architecture."""
    bundles = tmp_path_factory.mktemp("bundles")
    for name in NETWORKS:
        write_recorded(bundles, name)
    for name in OF_SOUND:
        write_mavil(bundles, name)
    write_hearing(bundles)
    limits: dict[str, Any] = {"max_video_pixels": PIXELS, "max_video_seconds": SECONDS, "max_video_frames": 2000}
    limits["max_audio_seconds"] = SECONDS
    with (
        service.valkey() as valkey,
        service.gateway(valkey.url, default_models={"classify-video": "mae-st", "classify-audio": "apart"}, **limits) as started,
        worker_process(valkey.url, bundles) as worker,
    ):
        eventually(lambda: started.metric("opsin_workers", state="ready") == 1, "a ready worker", START_S)
        yield Watching(started, worker.pid)


@pytest.fixture
def gateway(watching: Watching) -> Gateway:
    return watching.gateway
