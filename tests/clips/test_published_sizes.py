"""Every published size of the networks of clips and sound runs through the service, with random weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle import BundleSpec
from models.registry import architectures
from models.systems.mae_st.model import SIZES as MAE_ST
from models.systems.mavil.model import SIZES as MAVIL
from models.systems.mvit.checkpoint import preprocess_video
from models.systems.mvit.model import PUBLISHED as MVIT
from models.systems.mvit.reversible import PUBLISHED as REV_MVIT
from tests.support.audio import tones, wav
from tests.support.bundles.clips import video
from tests.support.bundles.vit import UNSEALED, seal
from tests.support.gateway_process import gateway_process
from tests.support.live_service import worker_process
from tests.support.redis import private_valkey

SIZES = {
    "mae-st-l": ("video_mae", MAE_ST["video_vit_large_patch16"], 1569),
    "mvitv2-s": ("mvit", MVIT["mvitv2_s_16x4"], 25_089),
    "mvitv2-b": ("mvit", MVIT["mvitv2_b_32x3"], 50_177),
    "mvitv2-l": ("mvit", MVIT["mvitv2_l_40x3"], 121_681),
    "rev-mvit-b": ("rev_mvit", REV_MVIT["rev_mvit_b_16x4"], 25_088),
    "mavil-b": ("mavil", MAVIL["mavil_base"], 513 + 785),
}
"""Architecture, config, and tokens before the first block."""


def write_random(root: Path, name: str) -> None:
    architecture, config, _ = SIZES[name]
    torch.manual_seed(0)
    purpose = architectures()[architecture].bundle_defaults
    weights = {key: value.contiguous() for key, value in architectures()[architecture].build(config).state_dict().items()}
    spec = BundleSpec(
        name=name,
        version="1",
        task=purpose.task(config),
        architecture=architecture,
        config=dataclasses.asdict(config),
        preprocess=preprocess_video(config.image_size),
        clip=purpose.clip(config),
        sound=purpose.sound(config),
        labels=[f"class {index}" for index in range(config.classes)],
        license="CC0-1.0",
        weights=UNSEALED,
    )
    seal(root, spec, weights)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", SIZES)
def test_a_published_size_answers(tmp_path: Path, name: str) -> None:
    _, config, tokens = SIZES[name]
    bundles = tmp_path / "bundles"
    write_random(bundles, name)
    hears = name.startswith("mavil")
    files = {"video": video(40, 10.0, 256, 340)} | ({"audio": wav(tones(10.24, 16_000, 440.0).astype(np.float32), 16_000)} if hears else {})
    options = {"top_k": config.classes} | ({"windows": 1} if hears else {"views": 1, "crops": 1})
    with private_valkey() as valkey, gateway_process(valkey.url) as gateway, worker_process(valkey.url, bundles):
        gateway.wait_for_workers()
        headers = {"X-Request-Timeout": "600"}
        answer = gateway.http.post("/v1/classify", files=files, data=options, headers=headers, timeout=620).raise_for_status().json()
    (result,) = answer["results"]
    scores = np.array([label["score"] for label in result["predictions"]])
    assert result["merging"]["tokens_in"] == tokens and len(scores) == config.classes
    assert np.isfinite(scores).all() and (scores > 0).all() and (hears or scores.sum() == pytest.approx(1.0, abs=1e-4))
