"""`opsin calibrate` as a user meets it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.bundle import Bundle, read
from models.bundle_schema import Int8
from models.loading import load
from tests.support.bundles.vit import write_null, write_tiny_vit
from tests.support.processes import opsin


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
    write_pictures(tmp_path / "images", bundle, 300)
    ended = opsin("calibrate", bundle.path, "--images", tmp_path / "images", "--bound", "0.3")
    assert ended.returncode == 0, ended.stderr
    again = read(bundle.path)
    again.verify()
    int8 = again.spec.int8
    assert int8 is not None and (int8.bound, int8.images, set(int8.rungs)) == (0.3, 300, {"off", "full", "fast"})
    assert int8.rungs["off"].float32 == 1.0 and int8.rungs["off"].int8 > 0.7
    assert again.spec.model_copy(update={"int8": None}) == bundle.spec
    assert again.spec.digest() != bundle.spec.digest()
    visible = " ".join(opsin("bundles", "show", "tiny", "--bundles", tmp_path / "bundles").stdout.split())
    assert "accuracy on 300 images, bound 0.3: off 100.00% → " in visible
    off = int8.rungs["off"]
    assert off.agreement == pytest.approx(off.int8) and off.agreement_bound is not None and off.agreement_bound < off.int8
    assert off.loss_error == pytest.approx((off.int8 * (1 - off.int8) / 299) ** 0.5)
    assert " ± " in ended.stdout
    assert not int8.allows("off")  # it loses less than the bound, but answers change
    assert re.search(
        r"^off .* not served: labels are only sure to agree with float32's in \d\d\.\d\d%, and 99% are needed$", ended.stdout, re.M
    )


def test_few_pictures_approve_nothing(tmp_path: Path) -> None:
    bundle = write_tiny_vit(tmp_path / "bundles")
    write_pictures(tmp_path / "images", bundle, 42)
    refused = opsin("calibrate", bundle.path, "--images", tmp_path / "images", "--bound", "1")
    assert refused.returncode == 2
    assert "holds 42 images in folders of labels; at least 300 are needed" in refused.stderr and "--force" in refused.stderr
    assert read(bundle.path) == bundle
    forced = opsin("calibrate", bundle.path, "--images", tmp_path / "images", "--bound", "1", "--force")
    assert forced.returncode == 0, forced.stderr
    int8 = read(bundle.path).spec.int8
    assert int8 is not None and int8.images == 42
    assert [name for name in int8.rungs if int8.allows(name)] == []
    assert forced.stdout.count("not served: labels are only sure to agree") == 3


@pytest.mark.parametrize(("agreement_bound", "served"), [(0.98999, False), (0.99, True), (None, True)])
def test_labels_must_agree_in_addition_to_accuracy(agreement_bound: float | None, served: bool) -> None:
    found = {"float32": 0.8, "int8": 0.8, "agreement_bound": agreement_bound}
    int8 = Int8.model_validate({"bound": 0.005, "images": 1000, "rungs": {"off": found}})
    assert int8.allows("off") is served
    assert (b"agreement_bound" in int8.model_dump_json().encode()) is (agreement_bound is not None)


@pytest.mark.slow
def test_misuse_is_named_and_changes_nothing(tmp_path: Path) -> None:
    bundle = write_tiny_vit(tmp_path / "bundles")
    write_pictures(tmp_path / "few", bundle, 3)
    (tmp_path / "strange" / "no such label").mkdir(parents=True)
    for arguments, sentence in (
        ([bundle.path, "--images", tmp_path / "few"], "holds 3 images in folders of labels; at least 300 are needed"),
        ([bundle.path, "--images", tmp_path / "strange"], "is not named after a label of tiny@1"),
        ([write_null(tmp_path / "bundles").path, "--images", tmp_path / "few"], "architecture null cannot be served in int8"),
    ):
        ended = opsin("calibrate", *arguments)
        assert ended.returncode == 2
        assert sentence in ended.stderr
    assert read(bundle.path) == bundle
