"""A foreign graph behind a service: a real queue, a real worker, real HTTP."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from tests.harness.graphs import SIZE, WEIGHT, colours, write_graph
from tests.harness.running import running


def test_a_foreign_graph_is_served_like_any_bundle(tmp_path: Path) -> None:
    write_graph(tmp_path / "bundles", colours())
    (tmp_path / "bundles/graph").unlink()
    file = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (255, 0, 51)).save(file, "PNG")
    with running(tmp_path / "bundles") as service:
        answer = service.gateway.classify(file.getvalue())
    assert answer.status_code == 200, answer.text
    logits = np.array([1.0, -1.0, 51 / 255 * 2 - 1]) @ WEIGHT
    scores = np.exp(logits) / np.exp(logits).sum()
    found = {prediction["index"]: prediction["score"] for prediction in answer.json()["results"][0]["predictions"]}
    np.testing.assert_allclose([found[index] for index in range(4)], scores, rtol=0, atol=1e-5)
