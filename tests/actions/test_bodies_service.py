"""Published layouts from the file to the answer: HMR 2.0 and LART are imported, joined with the detector, served, and asked over HTTP.

Their weights are random and their blocks few; `python -m benchmarks.bodies` does the same at full size.
"""

from __future__ import annotations

import io
from pathlib import Path

import av
import pytest

from benchmarks.bodies import NAME, make
from models.people import ava
from server import playground
from tests.support.gateway_process import gateway_process
from tests.support.live_service import Service, worker_process
from tests.support.redis import private_valkey
from tests.support.waiting import START_S

CLIP = playground.SAMPLES / "figures.mp4"
SECONDS = 0.5


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_published_networks_watch_a_clip_end_to_end(tmp_path: Path) -> None:
    make(tmp_path / "bundles", depth=1)
    with private_valkey() as valkey, gateway_process(valkey.url) as gateway, worker_process(valkey.url, tmp_path / "bundles") as worker:
        gateway.wait_for_workers()
        [model] = gateway.http.get("/v1/models").json()["models"]
        assert (model["name"], model["state"], model["labels"]) == (NAME, "ready", len(ava.CLASS_NAMES))
        asked = {"files": {"video": CLIP.read_bytes()}, "data": {"end_s": SECONDS, "top_k": 2}, "timeout": START_S}
        told = gateway.http.post("/v1/actions", **asked).raise_for_status().json()
        clip = gateway.http.post("/v1/actions", **asked, headers={"Accept": "video/mp4"}).raise_for_status()
        assert worker.poll() is None
        looked = Service([gateway], [worker], tmp_path / "bundles", valkey.url).counted("opsin_video_frames_total")
    standing, *_ = told["people"]
    assert [box[0] for box in standing["boxes"]] == pytest.approx([row / 15 for row in range(8)], abs=2e-3)
    assert all(240 < left < 280 and 30 < width < 70 for _, left, _, width, _, _ in standing["boxes"])
    [second] = standing["actions"]
    assert (second["start_s"], second["end_s"]) == (0.0, pytest.approx(SECONDS, abs=0.05))
    assert [one["label"] in ava.CLASS_NAMES.values() for one in second["labels"]] == [True, True]
    with av.open(io.BytesIO(clip.content)) as played:
        assert len(list(played.decode(video=0))) == 120
    assert looked == 16
