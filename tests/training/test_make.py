from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from models import bundle, loading


@pytest.fixture(scope="module")
def made(tiny_recipe_file: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which `python -m training` ran, and what it printed."""
    folder = tmp_path_factory.mktemp("made")
    command = [sys.executable, "-m", "training", str(tiny_recipe_file), "--cache", str(cache)]
    command += ["--runs", str(folder / "runs"), "--bundles", str(folder / "bundles")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_command_makes_a_bundle_that_the_server_can_load(made: tuple[Path, str]) -> None:
    written = bundle.read(made[0] / "bundles/tiny/0.1")
    model = loading.load(written)
    answer = model.forward({"pixels": np.zeros((2, 16, 16, 3), dtype=np.uint8)}, {"merge": [3, 3]})
    assert answer["logits"].shape == (2, 3)
    assert answer["tokens"].tolist() == [[17, 11]] * 2
    assert written.spec.labels == ["ball", "box", "stick"]


def test_the_bundle_says_where_it_comes_from_and_how_good_it_is(made: tuple[Path, str], tiny_recipe_file: Path) -> None:
    spec = bundle.read(made[0] / "bundles/tiny/0.1").spec
    assert spec.provenance["recipe_sha256"] == bundle.sha256_of(tiny_recipe_file)
    counts = spec.provenance["data"]["pictures"]
    assert counts["train"] + counts["val"] + counts["test"] == 72 and counts["pretrain"] == counts["train"]
    assert [row["name"] for row in spec.quality["baselines"]] == [
        "majority class",
        "logistic regression on pixels",
        "same ViT without pre-training",
    ]
    for row in spec.quality["baselines"]:
        assert row["gain"]["value"] == pytest.approx(spec.quality["test_accuracy"]["value"] - row["accuracy"]["value"], abs=2e-5)
        assert row["gain"]["n"] == counts["test"]
    assert [rung.name for rung in spec.ladder] == ["r3"]
    assert spec.quality["ladder"][0]["tokens_out"] == 11


def test_the_model_card_is_printed_and_lies_beside_the_weights(made: tuple[Path, str]) -> None:
    card = (made[0] / "bundles/tiny/0.1/README.md").read_text()
    assert card in made[1]
    assert "standard error" in card and "same ViT without pre-training" in card


def test_a_recipe_that_is_wrong_exits_2_with_one_line(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "training", str(tmp_path / "none.yaml")], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "none.yaml: cannot be read" in done.stderr
