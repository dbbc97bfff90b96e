"""A recipe becomes a bundle with an evaluation of inpainting, and evaluations continue after a stop."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from models import bundle
from training.cli import main as train
from training.errors import RecipeError
from training.evaluation.__main__ import main as evaluate
from training.recipe import read


@pytest.fixture(scope="module")
def made(recipe_file: Path, packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs` and `bundles`."""
    root = tmp_path_factory.mktemp("made")
    arguments = ["--runs", str(root / "runs"), "--bundles", str(root / "bundles"), "--cache", str(packages), "--no-tensorboard"]
    assert train([str(recipe_file), *arguments]) == 0
    return root


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """A copy of the trained phases, nothing evaluated yet."""
    copied = shutil.copytree(made / "runs", tmp_path / "runs")
    shutil.rmtree(copied / "tiny-inpaint-1.0.0/evaluation")
    return copied


def result_files(runs: Path) -> list[Path]:
    return sorted((runs / "tiny-inpaint-1.0.0/evaluation").glob("*.jsonl"))


def test_the_bundle_says_how_it_compares(made: Path) -> None:
    folder = made / "bundles/tiny-inpaint/1.0.0"
    quality = bundle.read(folder).spec.quality
    compared = {(row["name"], row["holes"]) for row in quality["inpainting"]}
    everywhere = (
        "mean colour",
        "Telea",
        "Navier-Stokes",
        "one-step MAE",
        "DiffMAE, as long as the MAE",
        "DiffMAE, 1 step",
        "DiffMAE, 3 steps",
    )
    assert compared == {(name, kind) for name in everywhere for kind in ("boxes", "centre")} | {("DiffMAE, 3 steps, log-SNR", "boxes")}
    primary = next(row for row in quality["inpainting"] if (row["name"], row["holes"]) == ("DiffMAE, 3 steps", "boxes"))
    assert quality["primary"]["value"] == primary["perceptual"]["value"] > 0
    assert primary["primary_minus_this"]["psnr"]["value"] == 0
    card = (folder / "README.md").read_text()
    assert "drawings of tiny-art 1.0-1, and on no photographs" in card
    assert "Who wins where" in card and "| Telea | boxes |" in card
    assert "</svg>" in (folder / "steps.svg").read_text()


def test_a_difference_is_paired(made: Path) -> None:
    rows = {(row["name"], row["holes"]): row for row in bundle.read(made / "bundles/tiny-inpaint/1.0.0").spec.quality["inpainting"]}
    primary, telea = rows["DiffMAE, 3 steps", "boxes"], rows["Telea", "boxes"]
    for score in ("perceptual", "psnr", "ssim"):
        assert telea["primary_minus_this"][score]["value"] == pytest.approx(primary[score]["value"] - telea[score]["value"], abs=3e-5)
    independent_error = (primary["psnr"]["standard_error"] ** 2 + telea["psnr"]["standard_error"] ** 2) ** 0.5
    assert telea["primary_minus_this"]["psnr"]["standard_error"] != pytest.approx(independent_error, rel=1e-3)


def test_evaluation_in_pieces_equals_evaluation_at_once(made: Path, runs: Path, recipe_file: Path, packages: Path) -> None:
    arguments = [str(recipe_file), "--runs", str(runs), "--cache", str(packages)]
    assert evaluate([*arguments, "--only", "telea"]) == 0
    [boxes, centre] = result_files(runs)
    boxes.write_text("".join(boxes.read_text().splitlines(keepends=True)[:2]) + "[0.1, 2")  # killed while it wrote
    untouched = centre.read_text()
    assert evaluate(arguments) == 0
    assert centre.read_text() == untouched
    quality = json.loads((runs / "tiny-inpaint-1.0.0/evaluation/quality.json").read_text())
    at_once = bundle.read(made / "bundles/tiny-inpaint/1.0.0").spec.quality
    for row, expected in zip(quality["inpainting"], at_once["inpainting"], strict=True):
        assert row["name"] == expected["name"]
        assert row["perceptual"]["value"] == pytest.approx(expected["perceptual"]["value"], abs=2e-5)  # batches are padded differently


def test_what_was_scored_is_not_scored_again(runs: Path, recipe_file: Path, packages: Path) -> None:
    arguments = [str(recipe_file), "--runs", str(runs), "--cache", str(packages), "--only", "mean"]
    assert evaluate(arguments) == 0
    for file in result_files(runs):
        file.write_text("[0.5, 20.25, 0.75]\n" * 4)
    marked = [file.read_text() for file in result_files(runs)]
    assert evaluate(arguments) == 0
    assert [file.read_text() for file in result_files(runs)] == marked


def test_an_untrained_phase_is_named(recipe_file: Path, packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate([str(recipe_file), "--runs", str(tmp_path), "--cache", str(packages)]) == 2
    assert "phase finish has not been trained to its end yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--split", "test"], "--split: kind inpainting has no splits to choose from; leave it out"),
        (["--phase", "third"], "--phase: unknown phase third; the phases are begin, one-step, finish"),
        (["release.quality=null"], "release.quality: the recipe asks for no measurement, so there is nothing to evaluate"),
    ],
)
def test_what_a_recipe_has_none_of_is_refused(
    recipe_file: Path, changes: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate([str(recipe_file), *changes]) == 2
    assert capsys.readouterr().err == f"{message}\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"one_step": "nothing"}, "release.quality.one_step: unknown phase nothing; the phases are begin, one-step, finish"),
        ({"primary_steps": 2}, r"primary_steps: 2 is not among steps \(1, 3\)"),
        ({"steps": [3, 1]}, "steps: give each once, ascending"),
    ],
)
def test_a_recipe_that_cannot_be_evaluated_is_refused(
    content: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    file = tmp_path / "recipe.yaml"
    quality = content["release"]["quality"] | change
    file.write_text(yaml.safe_dump(content | {"release": content["release"] | {"quality": quality}}))
    with pytest.raises(RecipeError, match=message):
        read(file)
