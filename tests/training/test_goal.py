"""What a bundle needs beside the training is looked at before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training import shapes
from training import command


def run(content: dict[str, Any], release: dict[str, Any], folder: Path) -> int:
    """→ the exit code."""
    recipe = shapes.write(content | {"release": release}, folder / "colours.yaml")
    return command.main([str(recipe), "--runs", str(folder / "runs"), "--bundles", str(folder / "bundles"), "--no-tensorboard"])


def held_out(data: Path) -> dict[str, Any]:
    return {"task": "classify", "quality": {"kind": "held-out", "data": {"kind": "folder", "path": str(data)}}}


def test_missing_held_out_images_are_named_before_the_training(colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shapes.recipe(colours), held_out(tmp_path / "none"), tmp_path) == 2
    assert capsys.readouterr().err == f"release.quality.data.path: {tmp_path / 'none'} is no folder\n"
    assert not (tmp_path / "runs").exists()


def test_held_out_images_of_other_labels_are_refused_before_the_training(
    colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    val = shapes.draw(tmp_path / "val", 2)
    (val / "red").rename(val / "rouge")
    assert run(shapes.recipe(colours), held_out(val), tmp_path) == 2
    assert "its labels are blue, green, rouge, those of training blue, green, red" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_task_that_the_network_is_not_for_is_refused_before_the_training(
    colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(shapes.recipe(colours), {"task": "embed"}, tmp_path) == 2
    assert "release.task: embed where phase finetune trains vit, which is for classify" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("recipe", "field", "path", "missing"),
    [
        ("actions", "clips.0.detector", "bundles/none/1", "bundles/none/1/bundle.json"),
        ("restorer", "classifier", "bundles/none/1", "bundles/none/1/bundle.json"),
        ("flags", "examples", "none", "none"),
    ],
)
def test_what_a_bundle_is_measured_with_is_named_before_the_training_where_it_is_missing(
    recipe: str, field: str, path: str, missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
    assert command.main([f"training/recipes/{recipe}.yaml", f"release.quality.{field}={path}", *folders]) == 2
    assert capsys.readouterr().err == f"release.quality.{field}: {missing} is not there\n"
    assert list(tmp_path.iterdir()) == []
