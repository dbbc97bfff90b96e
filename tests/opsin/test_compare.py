"""`opsin compare` as a user meets it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from models.bundle import Bundle, read, replace_spec
from models.bundle_schema import Int8
from models.loading import load
from opsin import Client
from tests.support.bundles.vit import write_tiny_diffmae, write_tiny_vit
from tests.support.live_service import running
from tests.support.processes import opsin

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
    """Return (format, merging) → the largest difference, how many labels agree."""
    cells = [line.split(maxsplit=3) for line in printed.splitlines()[1:-1]]
    return {(format_, merging): (float(difference), same) for format_, merging, difference, same in cells}


def test_differences_are_reported_by_format_and_merging(bundle: Bundle, tmp_path: Path) -> None:
    measured = {name: {"float32": 1.0, "int8": 1.0} for name in ("off", "full", "fast")}
    replace_spec(bundle, bundle.spec.model_copy(update={"int8": Int8.model_validate({"bound": 0.1, "images": 300, "rungs": measured})}))
    ended = opsin("compare", bundle.path, "--pictures", tmp_path / "photos", "--scores", tmp_path / "scores.npy")
    assert (ended.returncode, ended.stderr) == (0, "")
    found = rows(ended.stdout)
    assert found.keys() == {(format_, merging) for format_ in ("float32", "bfloat16", "int8") for merging in ("off", "full", "fast")}
    assert found["float32", "off"][0] < 1e-3 and found["float32", "off"][1] == "3 of 3"
    assert found["float32", "fast"][0] > 1e-3
    assert 1e-3 < found["bfloat16", "off"][0] < found["int8", "off"][0]


def test_what_another_command_writes_meanwhile_stays(bundle: Bundle, tmp_path: Path) -> None:
    """The scores come through a pipe, so the bundle changes after it was read."""
    scores = tmp_path / "scores.csv"
    os.mkfifo(scores)
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(opsin, "compare", bundle.path, "--pictures", tmp_path / "photos", "--scores", scores)
        with scores.open("w") as file:  # opens once the command does
            changed = replace_spec(bundle, bundle.spec.model_copy(update={"quality": {"accuracy": 0.5}}))
            np.savetxt(file, np.load(tmp_path / "scores.npy"), delimiter=",")
    assert ended.result().returncode == 1 and "another command has changed it" in ended.result().stderr
    assert read(bundle.path).spec == changed.spec


def test_the_result_is_served_by_workers_that_start_later(bundle: Bundle, tmp_path: Path) -> None:
    write_tiny_vit(tmp_path / "bundles", "other")
    before = bundle.spec.model_copy(update={"quality": {"accuracy": 0.5}})
    replace_spec(bundle, before)
    ended = opsin("compare", bundle.path, "--pictures", tmp_path / "photos", "--scores", tmp_path / "scores.npy")
    assert (ended.returncode, ended.stderr) == (0, "")
    after = read(bundle.path)
    after.verify()
    assert ended.stdout.splitlines()[-1].startswith(f"written   {bundle.path}/bundle.json, digest {after.spec.digest()[:12]}; workers")
    comparison = after.spec.quality["comparison"]
    assert after.spec == before.model_copy(update={"quality": {"accuracy": 0.5, "comparison": comparison}})
    assert comparison["images"] == 3
    printed = {key: (difference, int(same.split()[0])) for key, (difference, same) in rows(ended.stdout).items()}
    assert {(one["format"], one["merging"]): (one["max_difference"], one["same_labels"]) for one in comparison["results"]} == printed
    with running(tmp_path / "bundles") as service, Client(service.url) as client:
        served = {model["name"]: model for model in httpx2.get(f"{service.url}/v1/models", timeout=60).json()["models"]}
        assert (served["tiny"]["comparison"], served["other"]["comparison"]) == (comparison, None)
        assert (served["tiny"]["digest"], served["tiny"]["state"]) == (after.spec.digest(), "ready")
        assert httpx2.get(f"{service.url}/v1/models/tiny", timeout=60).json()["comparison"] == comparison == client.model("tiny").comparison
        assert client.model("other").comparison is None
    again = opsin("compare", bundle.path, "--pictures", tmp_path / "photos", "--scores", tmp_path / "scores.npy")
    assert again.stdout == ended.stdout and read(bundle.path).spec == after.spec, "a second result takes the place of the first"


def test_a_bundle_that_cannot_be_written_stays_as_it_was(bundle: Bundle, tmp_path: Path) -> None:
    content = (bundle.path / "bundle.json").read_bytes()
    names = sorted(path.name for path in bundle.path.iterdir())
    program = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); from opsin.cli import main; main()"
    options = ["--pictures", tmp_path / "photos", "--scores", tmp_path / "scores.npy"]
    ended = subprocess.run([sys.executable, "-B", "-c", program, "compare", bundle.path, *options], capture_output=True, text=True)
    sentence = f"opsin: compare: {bundle.path}: the result could not be written into bundle.json (File too large)\n"
    assert (ended.returncode, ended.stderr) == (1, sentence)
    assert "float32   off" in ended.stdout, "the result is printed all the same"
    assert (bundle.path / "bundle.json").read_bytes() == content
    assert sorted(path.name for path in bundle.path.iterdir()) == names


@pytest.mark.parametrize("change", [lambda logits: logits[::-1], lambda logits: logits * 1.1, lambda logits: -logits])
def test_logits_of_something_else_are_not_written(bundle: Bundle, change: Callable[[Any], Any], tmp_path: Path) -> None:
    content = (bundle.path / "bundle.json").read_bytes()
    np.save(tmp_path / "scores.npy", change(np.load(tmp_path / "scores.npy")))
    ended = opsin("compare", bundle.path, "--pictures", tmp_path / "photos", "--scores", tmp_path / "scores.npy")
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "float32   off" in ended.stdout and "written" not in ended.stdout
    assert "the images, their order or the preprocessing differ (see `transform`" in ended.stderr
    assert (bundle.path / "bundle.json").read_bytes() == content


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
        ("1,2\n3,4\n5,6\n", "scores.csv: has 3 × 2 numbers, but 3 images × 10 classes are needed"),
        ("a.png,1\nb.png,2\n", "scores.csv: cannot be read as numbers (there is no row for c.png)"),
        ("1,2\n3,x\n", "scores.csv: cannot be read as numbers (could not convert string to float: 'x')"),
    ],
)
def test_scores_that_do_not_fit_are_refused(bundle: Bundle, content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text(content)
    ended = opsin("compare", bundle.path, "--pictures", tmp_path / "photos", "--scores", tmp_path / "scores.csv")
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert sentence in ended.stderr


def test_missing_scores_are_named(bundle: Bundle, tmp_path: Path) -> None:
    ended = opsin("compare", bundle.path, "--pictures", tmp_path / "photos", "--scores", tmp_path / "none.npy")
    assert (ended.returncode, ended.stderr) == (2, f"opsin: --scores: {tmp_path / 'none.npy'}: no such file\n")


def test_what_is_no_classifier_and_what_is_no_image_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    painter = write_tiny_diffmae(tmp_path / "bundles")
    options = ["--pictures", tmp_path / "photos", "--scores", tmp_path / "scores.npy"]
    assert "its task is inpaint; only classifiers of images can be compared" in opsin("compare", painter.path, *options).stderr
    (tmp_path / "photos" / "c.png").write_text("no image")
    ended = opsin("compare", bundle.path, *options)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert f"--pictures: {tmp_path}/photos/c.png: not an image in a supported format" in ended.stderr


def test_a_setting_that_is_wrong_is_named(bundle: Bundle, tmp_path: Path) -> None:
    ended = opsin("compare", bundle.path, "--pictures", tmp_path / "photos", "--scores", tmp_path / "scores.npy", OPSIN_DTYPE="half")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "setting dtype" in ended.stderr
