from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.bundles.clips import NETWORKS, OF_SOUND, write_hearing, write_mavil, write_recorded
from tests.support.gateway_process import Gateway
from tests.support.live_service import Service, running

PIXELS = 128 * 96
SECONDS = 60


@pytest.fixture(scope="package")
def watching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose worker serves a classifier of clips, or of clips and sound, of every architecture."""
    bundles = tmp_path_factory.mktemp("bundles")
    for name in NETWORKS:
        write_recorded(bundles, name)
    for name in OF_SOUND:
        write_mavil(bundles, name)
    write_hearing(bundles)
    limits = {"max_video_pixels": PIXELS, "max_video_seconds": SECONDS, "max_video_frames": 2000, "max_audio_seconds": SECONDS}
    with running(bundles, default_models={"classify-video": "mae-st", "classify-audio": "apart"}, **limits) as started:
        yield started


@pytest.fixture
def gateway(watching: Service) -> Gateway:
    return watching.gateway
