"""Recipes of the starters: they are read from any folder, and start."""

from __future__ import annotations

from pathlib import Path

import pytest

from models import bundle
from starters.evaluation.flags import FlagsQuality
from training import cli, recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted(Path("starters/recipes").glob("*.yaml"))
BUNDLES = ("actions-lart", "clips", "depth", "flags", "inpaint", "reconstruct", "sounds", "words")
"""Shipped bundles that a recipe makes."""


def test_every_trained_bundle_has_its_recipe() -> None:
    made = {
        path.parents[1].name for path in (ROOT / "bundles").glob("*/*/bundle.json") if "recipe" in bundle.read(path.parent).spec.provenance
    }
    assert made == set(BUNDLES) == {recipe.read(file).name for file in RECIPES}


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_recipe_is_read_from_any_folder(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = recipe.read(file)
    monkeypatch.chdir(tmp_path)
    without_paths = {"phases": {"__all__": {"data"}}}
    assert recipe.read(file).model_dump(include={"phases"}, exclude=without_paths) == expected.model_dump(
        include={"phases"}, exclude=without_paths
    )


def test_what_a_recipe_is_measured_with_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = recipe.read(Path("starters/recipes/flags.yaml")).release
    assert flags and isinstance(flags.quality, FlagsQuality) and flags.quality.examples
    assert list(flags.quality.examples.glob("*.png"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_recipe_starts(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`--dry-run` counts every phase with as much data as the recipe has, which cannot be downloaded here."""
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_CONFIG_FILE", "/dev/null"), ("PATH", "")):
        monkeypatch.setenv(name, value)
    plan = recipe.read(file)
    labels = len(bundle.read(ROOT / "bundles" / plan.name / plan.version).spec.labels) or 100  # words: things that texts are about
    data = ["published_data.samples=10000", f"published_data.labels={labels}"]
    places = ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
    assert cli.main([str(file), *data, "--dry-run", *places]) == 0
    printed = capsys.readouterr().out
    assert all(f"phase {phase.name}: " in printed for phase in plan.phases)


@pytest.mark.parametrize("name", BUNDLES)
def test_recipe_has_an_earlier_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles record `training/recipes/…`, and a recipe of their own may have the kinds of that time."""
    monkeypatch.chdir(tmp_path)
    stem = "actions" if name == "actions-lart" else name
    assert recipe.read(Path(f"training/recipes/{stem}.yaml")).name == name


def test_missing_evaluation_data_is_named_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
    assert cli.main(["starters/recipes/flags.yaml", "release.quality.examples=none", *folders]) == 2
    assert capsys.readouterr().err == "release.quality.examples: none is not there\n"
    assert list(tmp_path.iterdir()) == []
