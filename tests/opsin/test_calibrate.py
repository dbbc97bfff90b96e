"""`opsin calibrate` as a user meets it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.bundle import Bundle, read
from models.loading import load
from tests.bundles import write_null, write_tiny_vit
from tests.opsin.command import opsin


def write_pictures(folder: Path, bundle: Bundle, count: int) -> None:
    """Random images in folders of the label that the model gives them: its accuracy in float32 is 1."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    best = load(bundle).forward({"pixels": pixels}, {"merge": [0, 0]})["logits"].argmax(axis=1)
    for number, (picture, label) in enumerate(zip(pixels, best, strict=True)):
        target = folder / bundle.spec.labels[label]
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(target / f"{number}.png")


def test_what_integers_cost_is_written_into_the_bundle(tmp_path: Path) -> None:
    bundle = write_tiny_vit(tmp_path / "bundles")
    write_pictures(tmp_path / "images", bundle, 40)
    ended = opsin("calibrate", bundle.path, "--images", tmp_path / "images", "--bound", "0.1")
    assert ended.returncode == 0, ended.stderr
    again = read(bundle.path)
    again.verify()
    int8 = again.spec.int8
    assert int8 is not None and (int8.bound, int8.images, set(int8.rungs)) == (0.1, 40, {"off", "full", "fast"})
    assert int8.rungs["off"].float32 == 1.0 and int8.rungs["off"].int8 > 0.8
    assert again.spec.model_copy(update={"int8": None}) == bundle.spec
    assert again.spec.digest() != bundle.spec.digest()
    shown = " ".join(opsin("bundles", "show", "tiny", "--bundles", tmp_path / "bundles").stdout.split())
    assert "accuracy on 40 images, bound 0.1: off 100.00% → " in shown


@pytest.mark.slow
def test_misuse_is_named_and_changes_nothing(tmp_path: Path) -> None:
    bundle = write_tiny_vit(tmp_path / "bundles")
    write_pictures(tmp_path / "few", bundle, 3)
    (tmp_path / "strange" / "no such label").mkdir(parents=True)
    for arguments, sentence in (
        ([bundle.path, "--images", tmp_path / "few"], "holds 3 images in folders of labels; at least 20 are needed"),
        ([bundle.path, "--images", tmp_path / "strange"], "is named after no label of tiny@1"),
        ([write_null(tmp_path / "bundles").path, "--images", tmp_path / "few"], "architecture null cannot be served in int8"),
    ):
        ended = opsin("calibrate", *arguments)
        assert ended.returncode == 2
        assert sentence in ended.stderr
    assert read(bundle.path) == bundle
