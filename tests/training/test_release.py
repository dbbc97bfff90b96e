"""A network is measured as it was trained and as its bundle holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from models import bundle
from tests.training import tiny_recipe
from training import cli
from training.phase_runner import WEIGHTS


@pytest.fixture
def content(colours: Path, tmp_path: Path) -> dict[str, Any]:
    """A recipe of one short phase, measured on held-out images."""
    recipe = tiny_recipe.recipe(colours)
    phase = recipe["phases"][1] | {"start": None, "loop": {"epochs": 1, "batch_size": 8}}
    held_out = {"kind": "folder", "path": str(tiny_recipe.draw(tmp_path / "val", 4, seed=1))}
    return recipe | {"phases": [phase], "release": {"task": "classify", "quality": {"kind": "held-out", "data": held_out}}}


def release(content: dict[str, Any], folder: Path) -> bundle.Bundle:
    recipe = tiny_recipe.write(content, folder / "colours.yaml")
    options = ["--runs", str(folder / "runs"), "--bundles", str(folder / "bundles"), "--no-tensorboard"]
    assert cli.main([str(recipe), *options]) == 0
    return bundle.read(folder / "bundles/colours/0.1")


def test_held_out_images_are_prepared_as_in_the_phase(content: dict[str, Any], tmp_path: Path) -> None:
    phase = content["phases"][0]
    phase["preprocess"] = content["preprocess"] | {"image_size": 24, "short_side": 24}
    phase["model"]["config"]["image_size"] = 24
    made = release(content, tmp_path)
    assert made.spec.image_preprocess.image_size == 24
    assert made.spec.quality["images"] == 12


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_measured_bundle_has_trained_weights_in_its_format(content: dict[str, Any], tmp_path: Path, dtype: torch.dtype) -> None:
    content["release"]["dtype"] = str(dtype).removeprefix("torch.")
    shipped = load_file(release(content, tmp_path).weights_path)
    trained = load_file(tmp_path / "runs/colours-0.1/finetune" / WEIGHTS)
    assert all(torch.equal(value, trained[name].to(dtype)) for name, value in shipped.items())
