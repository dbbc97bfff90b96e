"""A foreign graph behind a service: a real queue, a real worker, real HTTP."""

from __future__ import annotations

import io
from pathlib import Path

import httpx2
import numpy as np
import onnx
from PIL import Image

from tests.support.bundles.onnx import SIZE, WEIGHT, colours, write_graph
from tests.support.live_service import running
from tests.support.processes import opsin


def purple() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (255, 0, 51)).save(file, "PNG")
    return file.getvalue()


def test_a_foreign_graph_is_served_like_any_bundle(tmp_path: Path) -> None:
    write_graph(tmp_path / "bundles", colours())
    (tmp_path / "bundles/graph").unlink()
    with running(tmp_path / "bundles") as service:
        answer = service.gateway.classify(purple())
    assert answer.status_code == 200, answer.text
    logits = np.array([1.0, -1.0, 51 / 255 * 2 - 1]) @ WEIGHT
    scores = np.exp(logits) / np.exp(logits).sum()
    found = {prediction["index"]: prediction["score"] for prediction in answer.json()["results"][0]["predictions"]}
    np.testing.assert_allclose([found[index] for index in range(4)], scores, rtol=0, atol=1e-5)


def test_the_command_makes_an_encoder_that_answers_with_vectors(tmp_path: Path) -> None:
    file = tmp_path / "encoder.onnx"
    onnx.save_model(colours(shape=[1, 3, SIZE, SIZE]), file, save_as_external_data=True, location="encoder.data", size_threshold=0)
    command = ("import", file, "-o", tmp_path / "bundles/encoder", "--set", "range=0,1")
    unsure = opsin(*command, "--set", "output=scores", "--as", "segment")
    assert unsure.returncode == 2 and "'classify', 'embed'" in unsure.stderr
    ended = opsin(*command, "--as", "embed")
    assert (ended.returncode, ended.stderr) == (0, "") and "fixed batch of 1" in ended.stdout
    with running(tmp_path / "bundles") as service:
        ask = [("image", ("purple.png", purple()))] * 3
        answer = httpx2.post(f"{service.url}/v1/embed", files=ask, timeout=60)
        refused = httpx2.post(f"{service.url}/v1/embed?pool=cls", files=ask, timeout=60)
    assert answer.status_code == 200, answer.text
    expected = np.array([1.0, 0.0, 51 / 255]) @ WEIGHT
    np.testing.assert_allclose(answer.json()["embeddings"], [expected / np.linalg.norm(expected)] * 3, rtol=0, atol=1e-5)
    assert (refused.status_code, refused.json()["detail"]) == (422, "cls: encoder@1 offers no choice; leave it out")
