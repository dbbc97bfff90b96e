"""Published layouts from the file to the answer: HMR 2.0 and LART are imported, joined with the detector, and served over HTTP.

Their weights are random, and each has one block.
"""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import av
import numpy as np
import pytest
import torch

from models.checkpoints.export_bundle import write
from models.people import ava
from models.systems.hmr2.checkpoint import FAMILY as HMR2_FAMILY
from models.systems.hmr2.model import HMR2, PUBLISHED
from models.systems.lart.checkpoint import FAMILY as LART_FAMILY
from models.systems.lart.model import LART, LART_POSE
from server import playground
from tests.support.gateway_process import gateway_process
from tests.support.live_service import Service, worker_process
from tests.support.redis import private_valkey
from tests.support.waiting import START_S

CLIP = playground.SAMPLES / "figures.mp4"
NAME = "bodies"
SECONDS = 0.5


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_published_networks_watch_a_clip_end_to_end(tmp_path: Path) -> None:
    make_pipeline(tmp_path / "bundles", tmp_path / "published")
    with private_valkey() as valkey, gateway_process(valkey.url) as gateway, worker_process(valkey.url, tmp_path / "bundles") as worker:
        gateway.wait_for_workers()
        [model] = gateway.http.get("/v1/models").json()["models"]
        assert (model["name"], model["state"], model["labels"]) == (NAME, "ready", len(ava.CLASS_NAMES))
        request = {"files": {"video": CLIP.read_bytes()}, "data": {"end_s": SECONDS, "top_k": 2}, "timeout": START_S}
        answer = gateway.http.post("/v1/actions", **request).raise_for_status().json()
        clip = gateway.http.post("/v1/actions", **request, headers={"Accept": "video/mp4"}).raise_for_status()
        assert worker.poll() is None
        frame_count = Service([gateway], [worker], tmp_path / "bundles", valkey.url).sum_metric("opsin_video_frames_total")
    standing, *_ = answer["people"]
    assert [box[0] for box in standing["boxes"]] == pytest.approx([row / 15 for row in range(8)], abs=2e-3)
    assert all(240 < left < 280 and 30 < width < 70 for _, left, _, width, _, _ in standing["boxes"])
    [second] = standing["actions"]
    assert (second["start_s"], second["end_s"]) == (0.0, pytest.approx(SECONDS, abs=0.05))
    assert [one["label"] in ava.CLASS_NAMES.values() for one in second["labels"]] == [True, True]
    with av.open(io.BytesIO(clip.content)) as played:
        assert len(list(played.decode(video=0))) == 120
    assert frame_count == 16


def make_pipeline(root: Path, folder: Path) -> None:
    """Write the networks as the published files are into `folder`, and bundles of them and of the pipeline with the commands of a user."""
    torch.manual_seed(0)
    folder.mkdir()
    copytree("bundles/movenet", root / "movenet")
    checkpoint, statistics = folder / "network.ckpt", folder / "mean_std.npy"
    np.save(statistics, np.stack([np.zeros((1, 226)), np.ones((1, 226))]))  # means and standard deviations of a pose's first values
    body = HMR2(replace(PUBLISHED["hmr2_vit_huge_patch16"], depth=1, decoder_depth=1))
    write(checkpoint, HMR2_FAMILY, HMR2_FAMILY.export(body.state_dict()), {})
    run_opsin("import", checkpoint, "--family", "hmr2", "-o", root / "hmr2")
    write(checkpoint, LART_FAMILY, LART_FAMILY.export(LART(replace(LART_POSE, depth=1)).state_dict()), {})
    run_opsin("import", checkpoint, "--family", "lart", "-o", root / "lart", "--set", f"mean_std={statistics}")
    run_opsin("bundles", "join", NAME, "--pose", "hmr2", "--detector", "movenet", "--actions", "lart", "--bundles", root)


def run_opsin(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "opsin", *map(str, arguments)], check=True)
