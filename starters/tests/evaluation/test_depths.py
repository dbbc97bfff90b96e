"""A recipe for depth: its errors, the inflated outline, and the bundle that it ends in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from models import bundle
from models.systems.depth.model import LiteDepth
from starters.data.renders.scenes import Renders
from starters.evaluation import cards as model_card
from starters.evaluation.depth import error, inflate
from starters.tests import meshes
from training import cli, recipe
from training.evaluation import __main__ as evaluation


def ball(side: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Depth of a ball that fills the image, and its mask."""
    x, y = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="xy")
    inside = 1 - x**2 - y**2
    return -inside.clamp(min=0).sqrt(), inside > 0


def test_the_outline_of_a_ball_is_inflated_to_a_ball() -> None:
    depth, mask = ball()
    assert error(inflate(mask), depth, mask) < 0.05  # the edge of a mask has steps
    assert error(-inflate(mask), depth, mask) == pytest.approx(error(torch.zeros(64, 64), depth, mask))
    assert 0.7 < error(torch.zeros(64, 64), depth, mask) < 0.9
    assert error(100 * depth + 7, depth, mask) < 1e-6


def small(cache: Path) -> dict[str, Any]:
    content = meshes.recipe(cache)
    del content["space"]
    model = {"architecture": "lite_depth", "config": {"image_size": 32, "widths": [8, 8, 8, 8]}}
    phase = {"name": "first", "objective": {"kind": "depth"}, "optimiser": {"lr": 0.001}, "loop": {"epochs": 1, "batch_size": 4}}
    release = {"task": "depth", "quality": {"kind": "depth", "views": 2}}
    return content | {"name": "tiny-depth", "model": model, "phases": [phase], "release": release}


def test_recipe_ends_in_bundle_with_quality_of_depth(tmp_path: Path) -> None:
    file, places = tmp_path / "recipe.yaml", ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
    content = small(tmp_path / "cache")
    file.write_text(yaml.safe_dump(content))
    assert cli.main([str(file), *places, "--bundles", str(tmp_path / "bundles"), "--no-tensorboard"]) == 0
    made = bundle.read(tmp_path / "bundles/tiny-depth/1.0.0")
    made.verify()
    found = made.spec.quality["depth"]
    assert made.spec.task == "depth" and found["split"] == "test" and found["objects"] == 2
    assert [row["name"] for row in found["by_category"]] == ["books"]
    assert found["network"]["value"] > 0 and found["inflated"]["value"] > 0.3  # books are flat
    assert found["ratio"]["value"] == pytest.approx(found["network"]["value"] / found["inflated"]["value"], abs=1e-3)
    card = (made.path / "README.md").read_text(encoding="utf-8")
    assert card == model_card.render(made.spec) and "| books | 2 |" in card and "| shapes | 1.0.0 | MIT |" in card

    report = tmp_path / "runs/tiny-depth-1.0.0/evaluation/depth-test.json"
    before = report.read_text()
    assert evaluation.main([str(file), *places, "--split", "test"]) == 0 and report.read_text() == before
    assert evaluation.main([str(file), "release.quality.views=1", *places, "--split", "test"]) == 2  # it is looked at once
    assert evaluation.main([str(file), *places]) == 0
    assert (report.parent / "depth-val.json").is_file()


def test_starter_recipe_holds_out_test_objects_of_reconstruct() -> None:
    plan = recipe.read(Path("starters/recipes/depth.yaml"))
    other = recipe.read(Path("starters/recipes/reconstruct.yaml"))
    assert isinstance(plan.data, Renders) and isinstance(other.data, Renders)
    tested = {objects.category for package in other.data.packages for objects in package.objects if objects.part == "test"}
    trained = {objects.category for package in plan.data.packages for objects in package.objects if objects.part == "train"}
    assert not tested & trained
    libraries = [library for package in plan.data.packages for library in package.libraries]
    held_out = {"Vehicles": "test", "Bathroom": "test", "Lights": "test", "Office": "val", "Bedroom": "val"}
    assert len(libraries) == 4 and all(library.parts == held_out for library in libraries)
    network = plan.model_of(plan.phases[0]).resolve(0)
    assert LiteDepth(network).config.image_size == 160
