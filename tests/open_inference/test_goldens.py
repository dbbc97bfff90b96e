"""Recorded answers of networks of clips, of sound, and of reversible blocks come over the protocol, within their tolerances.

One input of each: `tests/golden` compares the answers to all of them.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from models.media.fbank import FbankConfig
from models.systems.mavil.preprocessing import spectrograms
from tests.golden.case import read_case
from tests.open_inference.golden_bundles import (
    GOLDEN,
    LOUDNESS,
    Head,
    expected_scores,
    heads,
    pictures,
    to_pixels,
    to_sounds,
    write_recorded,
)
from tests.support.audio import wav
from tests.support.live_service import SMALL_LIMITS, Service, running
from tests.support.videos import clip, every

HEADS = list(heads())
FRAME_RATE, SLOW_RATE = 10.0, 2.0
"""Frames a second of clips as the bundles take them: MAViL's are slow."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    bundles = tmp_path_factory.mktemp("bundles")
    for folder in {head.case for head in HEADS}:
        write_recorded(bundles, folder)
    with running(bundles, **SMALL_LIMITS) as service:
        yield service


@functools.cache
def sound(folder: str) -> NDArray[np.float32]:
    return to_sounds(read_case(GOLDEN / folder).inputs["audio"][:1])[0]


def files(head: Head) -> dict[str, bytes]:
    """Return the parts of a request for the first recorded input."""
    case, sent = read_case(GOLDEN / head.case), {}
    pixels = to_pixels(pictures(case)[0])
    if "image" in head.parts:
        Image.fromarray(np.moveaxis(pixels, 0, -1)).save(png := io.BytesIO(), "PNG")
        sent["image"] = png.getvalue()
    if "video" in head.parts:
        frames = list(np.moveaxis(pixels, 0, -1))  # (T, H, W, 3)
        times = every(len(frames), SLOW_RATE if case.system == "mavil" else FRAME_RATE)
        size = frames[0].shape[:2]
        sent["video"] = clip(times, container="matroska", codec="ffv1", pixels="bgr0", size=size, frames=frames)
    if "audio" in head.parts:
        sent["audio"] = wav(sound(head.case), 16_000)
    return sent


def scores(service: Service, bundle: str, sent: dict[str, bytes]) -> NDArray[np.float64]:
    inputs = [{"name": name, "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(data).decode()]} for name, data in sent.items()]
    body = {"inputs": inputs, "parameters": {} if "image" in sent or "audio" in sent else {"views": 1, "crops": 1}}
    answer = service.gateway.http.post(f"/v2/models/{bundle}/infer", json=body, timeout=120)
    outputs = answer.raise_for_status().json()["outputs"]
    return np.array(next(output["data"] for output in outputs if output["name"] == "scores"))


def test_every_recorded_classification_is_requested() -> None:
    requested = {(head.case, head.output) for head in HEADS}
    assert requested == {
        ("mae_st/finetune_sep_cls", "logits"),
        ("mae_st/finetune_slowfast_ckpt", "logits"),
        ("mavil/finetune_av", "probs_av"),
        ("mavil/finetune_uni", "logits_audio"),
        ("mavil/finetune_uni", "logits_video"),
        ("mvit/mvitv1_mlp_expand_tiny", "probs"),
        ("mvit/mvitv2_cls_odd", "probs"),
        ("mvit/mvitv2_cls_tiny", "probs"),
        ("rev/minrev_tiny", "logits"),
        ("rev/rev_mvit_image_tiny", "probs"),
        ("rev/rev_mvit_video_tiny", "probs"),
        ("rev/rev_vit_droppath", "probs"),
        ("rev/rev_vit_tiny", "probs"),
    }


@pytest.mark.parametrize("head", HEADS, ids=[f"{head.case}-{head.output}" for head in HEADS])
def test_recorded_scores_come_over_the_protocol(recorded: Service, head: Head) -> None:
    case = read_case(GOLDEN / head.case)
    answered = scores(recorded, head.bundle, files(head))
    tolerance = case.tolerance_of(head.output)
    np.testing.assert_allclose(answered, expected_scores(case, head.output)[0].numpy(), atol=tolerance.atol, rtol=tolerance.rtol)


@pytest.mark.parametrize("folder", ["mavil/finetune_av", "mavil/finetune_uni"])
def test_sounds_have_the_recorded_spectrograms(folder: str) -> None:
    """Otherwise scores would be off for a reason of the test's own."""
    recorded = read_case(GOLDEN / folder).inputs["audio"][:1]
    computed = spectrograms([torch.from_numpy(sound(folder))], recorded.shape[2], LOUDNESS, FbankConfig(mel_bins=recorded.shape[3]))
    torch.testing.assert_close(computed, recorded, atol=2e-5, rtol=0)
