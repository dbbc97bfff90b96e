"""`opsin compare` as a user meets it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.bundle import Bundle, rewrite
from models.loading import load
from models.spec import Int8
from tests.harness.bundles import write_tiny_diffmae, write_tiny_vit
from tests.harness.command import opsin

NAMES = ["a.png", "b.png", "c.png"]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A ViT whose logits for three images of its own size are in `scores.npy`, images in `photos`."""
    made = write_tiny_vit(tmp_path / "bundles")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    (tmp_path / "photos").mkdir()
    for name, picture in zip(NAMES, pixels, strict=True):
        Image.fromarray(picture).save(tmp_path / "photos" / name)
    np.save(tmp_path / "scores.npy", load(made).forward({"pixels": pixels}, {"merge": [0, 0]})["logits"])
    return made


def rows(printed: str) -> dict[tuple[str, str], tuple[float, str]]:
    """(format, merging) → the largest difference, how many labels agree."""
    cells = [line.split(maxsplit=3) for line in printed.splitlines()[1:]]
    return {(format_, merging): (float(difference), same) for format_, merging, difference, same in cells}


def test_differences_are_told_by_format_and_merging(bundle: Bundle, tmp_path: Path) -> None:
    measured = {name: {"float32": 1.0, "int8": 1.0} for name in ("off", "full", "fast")}
    rewrite(bundle, bundle.spec.model_copy(update={"int8": Int8.model_validate({"bound": 0.1, "images": 300, "rungs": measured})}))
    ended = opsin("compare", bundle.path, "--pictures", tmp_path / "photos", "--scores", tmp_path / "scores.npy")
    assert (ended.returncode, ended.stderr) == (0, "")
    found = rows(ended.stdout)
    assert found.keys() == {(format_, merging) for format_ in ("float32", "bfloat16", "int8") for merging in ("off", "full", "fast")}
    assert found["float32", "off"][0] < 1e-3 and found["float32", "off"][1] == "3 of 3"
    assert found["float32", "fast"][0] > 1e-3
    assert 1e-3 < found["bfloat16", "off"][0] < found["int8", "off"][0]


@pytest.mark.parametrize("named", [False, True])
def test_scores_may_be_csv(bundle: Bundle, named: bool, tmp_path: Path) -> None:
    scores = np.load(tmp_path / "scores.npy")
    order = reversed(range(3)) if named else range(3)
    lines = [",".join([NAMES[index]] * named + [str(value) for value in scores[index]]) for index in order]
    (tmp_path / "scores.csv").write_text("\n".join(["file,scores"] * named + lines), encoding="utf-8-sig")  # as spreadsheets do
    ended = opsin("compare", bundle.path, "--pictures", tmp_path / "photos", "--scores", tmp_path / "scores.csv")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert rows(ended.stdout)["float32", "off"][0] < 1e-3


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("1,2\n3,4\n5,6\n", "scores.csv: holds 3 × 2 numbers where 3 images × 10 classes are needed"),
        ("a.png,1\nb.png,2\n", "scores.csv: cannot be read as numbers (there is no row for c.png)"),
        ("1,2\n3,x\n", "scores.csv: cannot be read as numbers (could not convert string to float: 'x')"),
    ],
)
def test_scores_that_do_not_fit_are_refused(bundle: Bundle, content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text(content)
    ended = opsin("compare", bundle.path, "--pictures", tmp_path / "photos", "--scores", tmp_path / "scores.csv")
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert sentence in ended.stderr


def test_what_is_no_classifier_and_what_is_no_image_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    painter = write_tiny_diffmae(tmp_path / "bundles")
    options = ["--pictures", tmp_path / "photos", "--scores", tmp_path / "scores.npy"]
    assert "its task is inpaint; only classifiers of images can be compared" in opsin("compare", painter.path, *options).stderr
    (tmp_path / "photos" / "c.png").write_text("no image")
    ended = opsin("compare", bundle.path, *options)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert f"--pictures: {tmp_path}/photos/c.png: not an image in a format" in ended.stderr


def test_a_setting_that_is_wrong_is_named(bundle: Bundle, tmp_path: Path) -> None:
    ended = opsin("compare", bundle.path, "--pictures", tmp_path / "photos", "--scores", tmp_path / "scores.npy", OPSIN_DTYPE="half")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "setting dtype" in ended.stderr
