"""Graphs of common signatures that fill holes or predict depth, with random weights: imported, opened and run."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from onnx import helper
from PIL import Image

from models.bundle import Bundle, BundleError, read, write
from models.checkpoints.checkpoint_file import CheckpointError
from models.loading import load, unsupported_reason
from models.systems.onnx.import_graph import import_graph
from tests.support.bundles.onnx import FLOAT, graph, lama, midas, migan
from tests.support.images import picture
from tests.support.live_service import running
from tests.support.processes import opsin

SIDE = 32


def import_file(tmp_path: Path, content: bytes, **settings: str) -> Bundle:
    file = tmp_path / "foreign.onnx"
    file.write_bytes(content)
    spec, _ = import_graph(file, overrides=settings, name="foreign", version="1", license="Apache-2.0")
    return write(tmp_path / "bundles", spec, file)


def job(height: int, width: int) -> dict[str, np.ndarray]:
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    missing = np.zeros((height, width), np.uint8)
    missing[8:20, 4 : width - 4] = 1
    return {"pixels": pixels, "missing": missing, "windows": np.array([[0, 0], [0, width - SIDE]], np.int32), "box": np.arange(4)}


@pytest.mark.parametrize(
    ("content", "settings"), [(lama(SIDE), {"mask": "hole", "answer": "bytes"}), (migan(), {"mask": "known", "image_size": "32"})]
)
def test_a_hole_is_filled_window_by_window_and_known_pixels_stay(tmp_path: Path, content: bytes, settings: dict[str, str]) -> None:
    loaded = load(import_file(tmp_path, content, **settings))
    assert loaded.steps is not None and loaded.spec.task == "inpaint" and unsupported_reason(loaded.spec) is None
    arrays = job(24, 50)  # lower than the network's square, and wider
    [state] = loaded.steps.start([arrays], [{"samples": 2}])
    [outcome] = loaded.steps.step([state], [False])
    [ended] = loaded.steps.step([outcome.state], [False])  # type: ignore[union-attr]
    filled, hole = ended.outputs["filled"], arrays["missing"] > 0  # type: ignore[union-attr]
    assert filled.shape == (2, 24, 50, 3) and (filled[0] == filled[1]).all()
    np.testing.assert_array_equal(filled[0][~hole], arrays["pixels"][~hole])
    assert (filled[0][hole] != arrays["pixels"][hole]).any()
    np.testing.assert_array_equal(ended.outputs["box"], arrays["box"])  # type: ignore[union-attr]


@pytest.mark.parametrize(("mask", "filled_with"), [("hole", 255), ("known", 0)])
def test_the_mask_means_what_the_user_says(tmp_path: Path, mask: str, filled_with: int) -> None:
    model = load(import_file(tmp_path, migan(), mask=mask, image_size="32")).model
    hole = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    hole[4:9, 4:9] = True
    made = model(torch.full((SIDE, SIDE, 3), 100, dtype=torch.uint8), hole)
    assert (made[hole] == filled_with).all() and (made[~hole] == 100).all()


@pytest.mark.parametrize("output", ["disparity", "depth"])
def test_depth_graphs_run_without_a_route(tmp_path: Path, output: str) -> None:
    bundle = read(import_file(tmp_path, midas(SIDE), output=output).path)
    assert (bundle.spec.task, bundle.spec.config) == ("depth", {"image_size": SIDE, "output": output})
    assert bundle.spec.image_preprocess.fit == "squeeze" and bundle.spec.image_preprocess.mean == (0.485, 0.456, 0.406)
    assert unsupported_reason(bundle.spec) == "task depth is not served yet by this version"
    answer = load(bundle).model(torch.rand(2, 3, SIDE, SIDE))
    assert answer.shape == (2, SIDE, SIDE) and answer.isfinite().all()


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (lama(SIDE), {"answer": "bytes"}, "does not declare its mask: --set mask= is one of hole"),
        (lama(SIDE), {"mask": "hole"}, "does not declare its answer: --set answer= is one of bytes"),
        (lama(SIDE), {"mask": "outside", "answer": "bytes"}, "mask: Input should be 'hole' or 'known'"),
        (lama(SIDE), {"mask": "hole", "answer": "bytes", "image_size": "64"}, r"image \(1, 3, 32, 32\)"),
        (lama("side"), {"mask": "hole", "answer": "bytes"}, "several sizes: set one, as in --set image_size=512"),
        (midas(SIDE), {}, "does not declare its output: --set output= is one of disparity"),
        (midas(SIDE), {"output": "depth", "heads": "2"}, "heads: unknown; the fields are image_size, output"),
        (b"no graph", {}, "not an ONNX file"),
    ],
)
def test_settings_that_the_graph_lacks_are_required(tmp_path: Path, content: bytes, settings: dict[str, str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        import_file(tmp_path, content, **settings)


def test_a_graph_without_such_a_signature_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", ["image"], ["answer"])]
    content = graph([("image", FLOAT, 3)], SIDE, nodes, (FLOAT, [1, 3, SIDE, SIDE]))
    with pytest.raises(
        CheckpointError, match=r"its outputs are float32 answer \(1, 3, 32, 32\); one of \(batch, two or more numbers\) is needed"
    ):
        import_file(tmp_path, content)


def test_a_graph_that_fails_is_not_loaded(tmp_path: Path) -> None:
    bundle = import_file(tmp_path, lama("side"), mask="hole", answer="bytes", image_size="32")
    nodes = [helper.make_node("Reshape", ["image", "axis"], ["answer"])]
    bundle.weights_path.write_bytes(graph([("image", FLOAT, 3), ("mask", FLOAT, 1)], SIDE, nodes, (FLOAT, [1, 3, SIDE, SIDE])))
    write(tmp_path / "other", bundle.spec, bundle.weights_path)
    with pytest.raises(BundleError, match="it fails on a black image of 32 × 32 pixels"):
        load(read(tmp_path / "other/foreign/1"))


def test_command_requires_licence_and_service_fills_holes(tmp_path: Path) -> None:
    file = tmp_path / "lama.onnx"
    file.write_bytes(lama(SIDE))
    command = ("import", file, "-o", tmp_path / "bundles/lama", "--set", "mask=hole", "--set", "answer=bytes")
    refused = opsin(*command)
    assert refused.returncode == 2 and "under which licence" in refused.stderr
    assert "--family is for checkpoints" in opsin(*command, "--family", "timm").stderr
    ended = opsin(*command, "--license", "Apache-2.0")
    assert (ended.returncode, ended.stderr) == (0, "") and "license       Apache-2.0" in ended.stdout
    image = picture(1)
    with running(tmp_path / "bundles") as service:
        answer = httpx2.post(f"{service.url}/v1/inpaint?mask=center&samples=2", files={"image": image}, timeout=60)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["sampler"], body["steps"], body["method"]) == ("one-step", 1, "network")
    filled = np.array(Image.open(io.BytesIO(base64.b64decode(body["results"][0]["image"]))))
    sent = np.array(Image.open(io.BytesIO(image)).convert("RGB"))
    assert (filled[0] == sent[0]).all() and (filled != sent).any()
