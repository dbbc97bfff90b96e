from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models import bundle, loading
from models.bundle_files import sha256_of
from starters.tests.collection import COLOURS
from tests.training import tiny_recipe
from training import cli


@pytest.fixture(scope="module")
def made(tiny_recipe_file: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which `python -m training` ran, and what it printed."""
    folder = tmp_path_factory.mktemp("made")
    return folder, tiny_recipe.finish(
        tiny_recipe.start(tiny_recipe_file, "--cache", cache, "--runs", folder / "runs", "--bundles", folder / "bundles")
    )


def test_the_command_makes_a_bundle_that_the_server_can_load(made: tuple[Path, str]) -> None:
    written = bundle.read(made[0] / "bundles/tiny/0.1")
    model = loading.load(written)
    answer = model.forward({"pixels": np.zeros((2, 16, 16, 3), dtype=np.uint8)}, {"merge": [3, 3]})
    assert answer["logits"].shape == (2, 6)
    assert answer["tokens"].tolist() == [[17, 11]] * 2
    assert written.spec.labels == [f"{code}land" for code in COLOURS]


def test_the_bundle_says_where_it_comes_from_and_how_good_it_is(made: tuple[Path, str], tiny_recipe_file: Path) -> None:
    spec = bundle.read(made[0] / "bundles/tiny/0.1").spec
    assert spec.provenance["recipe_sha256"] == sha256_of(tiny_recipe_file)
    assert spec.provenance["data"]["drawings"] == {"train": 9, "val": 2}
    assert [(source["name"], source["top1"]["n"]) for source in spec.quality["sources"]] == [
        ("Tiny emoji", 6),
        ("Tiny clip art", 6),
        ("Tiny emoji, distorted", 6),
        ("Tiny clip art, distorted", 6),
        ("all, clean", 12),
        ("all, distorted", 12),
    ]
    for source in spec.quality["sources"]:
        assert source["top5"]["value"] >= source["top1"]["value"]
        assert set(source["baselines"]) == {"nearest neighbour"}
        for rival in source["baselines"].values():
            assert rival["gain"]["value"] == pytest.approx(source["top1"]["value"] - rival["accuracy"]["value"], abs=2e-5)
    assert [rung.name for rung in spec.ladder] == ["r3"]
    assert spec.quality["ladder"][0]["tokens_out"] == 11


def test_nearest_neighbour_with_cut_out_flag_knows_clean_ones(made: tuple[Path, str]) -> None:
    spec = bundle.read(made[0] / "bundles/tiny/0.1").spec
    assert spec.quality["sources"][0]["baselines"]["nearest neighbour"]["accuracy"]["value"] == 1


def test_the_model_card_is_printed_and_written(made: tuple[Path, str]) -> None:
    card = (made[0] / "bundles/tiny/0.1/README.md").read_text()
    assert card in made[1]
    for text in ("standard error", "photographs are untested", "temperature of"):
        assert text in card


def test_a_recipe_that_is_wrong_exits_2_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([str(tmp_path / "none.yaml")]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and "none.yaml: cannot be read" in text
