"""Files that a bundle needs in addition to the training are checked before the first step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.vocabularies import small_bert
from tests.training import tiny_recipe
from training import cli


def run(content: dict[str, Any], release: dict[str, Any], folder: Path, *arguments: str) -> int:
    """Return the exit code."""
    recipe = tiny_recipe.write(content | {"release": release}, folder / "colours.yaml")
    return cli.main([str(recipe), *arguments, "--runs", str(folder / "runs"), "--bundles", str(folder / "bundles"), "--no-tensorboard"])


def held_out(data: Path) -> dict[str, Any]:
    return {"task": "classify", "quality": {"kind": "held-out", "data": {"kind": "folder", "path": str(data)}}}


def test_missing_held_out_images_are_named_before_the_training(colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tiny_recipe.recipe(colours), held_out(tmp_path / "none"), tmp_path) == 2
    assert capsys.readouterr().err == f"release.quality.data.path: {tmp_path / 'none'} is not a folder\n"
    assert not (tmp_path / "runs").exists()


def test_held_out_images_of_other_labels_are_refused_early(colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    val = tiny_recipe.draw(tmp_path / "val", 2)
    (val / "red").rename(val / "rouge")
    assert run(tiny_recipe.recipe(colours), held_out(val), tmp_path) == 2
    assert "its labels are blue, green, rouge, those of training blue, green, red" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_task_unfit_for_network_is_refused_before_training(colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tiny_recipe.recipe(colours), {"task": "embed"}, tmp_path) == 2
    assert "release.task: embed where phase finetune trains vit, which is for classify" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


LADDER = {"min_throughput": 1.1, "batch_size": 2, "rounds": 3, "rungs": [{"name": "r3", "schedule": 3}]}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("license", "CC0-1.0\n", "license: 'CC0-1.0\\n' holds control characters"),
        ("note", "a \ud800", "holds a lone surrogate"),
        ("release.quality.ladder.rungs.0.name", "R 3", "ladder.0.name: String should match pattern"),
        ("preprocess.image_width", 16, "preprocess: task classify takes square pictures"),
        ("phases.1.model.config.classes", 10, "phases.1.model: 3 labels for a model of 10 classes"),
    ],
)
def test_what_a_bundle_refuses_is_refused_before_the_training(
    field: str, value: object, message: str, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release = held_out(tiny_recipe.draw(tmp_path / "val", 1))
    release["quality"]["ladder"] = LADDER
    assert run(tiny_recipe.recipe(colours), release, tmp_path, f"{field}={json.dumps(value)}") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_impossible_network_is_refused_before_training(colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tiny_recipe.recipe(colours), {"task": "classify"}, tmp_path, "model.config.heads=0") == 2
    assert capsys.readouterr().err.startswith("phase pretrain: model: no network can be made of this config (")


@pytest.mark.parametrize("phase", [[], ["--phase", "finetune"]])
def test_a_label_of_several_lines_is_refused_before_the_training(
    phase: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny_recipe.draw(tmp_path / "data", 8)
    (data / "red").rename(data / "red\tor so")
    content = tiny_recipe.recipe(data)
    content["phases"][1]["start"] = None
    assert run(content, {"task": "classify"}, tmp_path, *phase) == 2
    assert "labels.2: 'red\\tor so' holds control characters" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_unfit_tokenizer_is_refused_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_recipe.draw(tmp_path / "data", 1)
    (tmp_path / "data/captions.jsonl").write_text('{"image": "red/0.png", "caption": "a red dog"}')
    tower = {"width": 16, "depth": 1, "heads": 2, "joint_width": 8, "text_width": 16, "text_depth": 1, "text_heads": 2, "text_hidden": 16}
    content = tiny_recipe.recipe(tmp_path / "data") | {
        "words": 5,
        "data": {"kind": "pairs", "path": str(tmp_path / "data"), "words": {"tokenizer": str(small_bert(tmp_path, 120))}},
        "model": {
            "architecture": "flip",
            "config": {"image_size": 16, "patch_size": 4, **tower, "text_length": 5, "vocabulary": 100},
        },
        "phases": [
            {"name": "only", "objective": {"kind": "contrastive"}, "optimiser": {"lr": 0.01}, "loop": {"epochs": 1, "batch_size": 1}}
        ],
    }
    assert run(content, {"task": "zero-shot"}, tmp_path) == 2
    output = capsys.readouterr().err
    assert output.startswith("data.words.tokenizer: ") and "100" in output
    assert not (tmp_path / "runs").exists()
