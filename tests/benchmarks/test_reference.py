from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import reference
from models.loading import load


def test_images_have_size_of_photographs_and_repeat(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        reference.write_pictures(tmp_path / folder, count=3)
    first, second = ([path.read_bytes() for path in sorted((tmp_path / folder).iterdir())] for folder in ("first", "second"))
    assert first == second
    assert len(set(first)) == 3
    assert all(40_000 <= len(jpeg) <= 100_000 for jpeg in first)
    assert Image.open(io.BytesIO(first[0])).size == (500, 375)


def test_the_reference_bundle_is_the_same_vit_s_every_time(tmp_path: Path) -> None:
    first, second = reference.make_bundle(tmp_path / "first"), reference.make_bundle(tmp_path / "second")
    assert first.spec.weights.sha256 == second.spec.weights.sha256
    model = load(first)
    assert sum(parameter.numel() for parameter in model.model.parameters()) == 22_050_664  # ViT-S/16 with 1000 classes
    outputs = model.forward({"pixels": np.zeros((1, 224, 224, 3), np.uint8)}, {"merge": [0] * model.depth})
    assert outputs["tokens"].tolist() == [[197, 197]]
