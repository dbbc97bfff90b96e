"""A recipe whose network knows both sides of objects: its two phases, what is evaluated, and the bundle that it ends in."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from models import bundle
from models.loading import load
from models.systems.mcc.model import MCC
from starters.data.renders.scenes import Renders
from starters.evaluation import cards as model_card
from starters.evaluation.reconstruction.quality import METHODS, NETWORK
from starters.evaluation.reconstruction.shapes import EXTRUDED, SEEN
from starters.tests import meshes
from tests.models.systems.mcc.test_known import CONFIG
from training import cli, recipe
from training.evaluation import __main__ as evaluation

OBJECTIVE = {"kind": "mcc", "queries": 48, "near": 0.7, "spread": 0.5, "size": 4.0, "shift": 0.0, "degrees": 0}
LOOP = {"epochs": 2, "batch_size": 4}


def small(cache: Path) -> dict[str, Any]:
    content = meshes.recipe(cache)
    [boxes] = [objects for objects in content["data"]["packages"][0]["objects"] if objects["category"] == "boxes"]
    boxes["files"] = [*boxes["files"], boxes["files"][0].replace("brick", "marble")]
    config = dataclasses.asdict(CONFIG)
    config["back"]["widths"] = list(config["back"]["widths"])
    shape = {"name": "shape", "initial": "nearest", "objective": OBJECTIVE, "optimiser": {"lr": 0.0003}, "loop": LOOP}
    quality = {"kind": "reconstruction", "primary": ["books"], "views": 1, "distance": 0.2}
    return content | {
        "name": "tiny-reconstruct",
        "preprocess": content["preprocess"] | {"image_size": 48, "short_side": 48},
        "data": content["data"] | {"seen_size": 32, "back": True},
        "model": {"architecture": "mcc", "config": config},
        "phases": [
            {"name": "back", "objective": {"kind": "back"}, "optimiser": {"lr": 0.003}, "loop": LOOP},
            shape | {"parts": {"back": "back"}},
        ],
        "release": {
            "task": "reconstruct",
            "phase": "shape",
            "quality": quality | {"spacing": 0.5, "depths": [0.5, 2.0]},
        },
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of a small run with its bundle, and how commands name it."""
    folder = tmp_path_factory.mktemp("reconstruct")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(small(folder / "cache")))
    places = [str(folder / "recipe.yaml"), "--runs", str(folder / "runs"), "--cache", str(folder / "cache")]
    assert cli.main([*places, "--bundles", str(folder / "bundles"), "--no-tensorboard"]) == 0
    return folder, places


def test_what_was_trained_first_is_what_the_bundle_holds(trained: tuple[Path, list[str]]) -> None:
    folder, _ = trained
    runs = folder / "runs/tiny-reconstruct-1.0.0"
    first, last = (load_file(runs / phase / "model.safetensors") for phase in ("back", "shape"))
    part = {name for name in first if name.startswith("back.")}
    assert part and all(torch.equal(first[name], last[name]) for name in part)
    network = load(bundle.read(folder / "bundles/tiny-reconstruct/1.0.0")).model
    assert isinstance(network, MCC) and network.config.back == CONFIG.back


def test_bundle_has_quality_of_reconstruction_and_baselines(trained: tuple[Path, list[str]]) -> None:
    folder, _ = trained
    made = bundle.read(folder / "bundles/tiny-reconstruct/1.0.0")
    made.verify()
    found = made.spec.quality["reconstruction"]
    assert found["split"] == "test" and found["objects"] == 2 and found["categories"] == ["books"]
    rows = {row["name"]: row for row in found["reconstruction"]}
    assert tuple(rows) == METHODS
    assert rows[SEEN]["f1"]["value"] > 0.1
    gain = rows[NETWORK]["f1"]["value"] - rows[EXTRUDED]["f1"]["value"]
    assert rows[EXTRUDED]["network_minus_this"]["value"] == pytest.approx(gain, abs=1e-4)
    card = (made.path / "README.md").read_text(encoding="utf-8")
    assert card == model_card.render(made.spec) and "(books)" in card and "| shapes | 1.0.0 | MIT |" in card


def test_the_test_is_looked_at_once(trained: tuple[Path, list[str]]) -> None:
    folder, places = trained
    report = folder / "runs/tiny-reconstruct-1.0.0/evaluation/reconstruction-test.json"
    before = report.read_text()
    assert evaluation.main([*places, "--split", "test"]) == 0 and report.read_text() == before
    assert evaluation.main([*places, "release.quality.views=2", "--split", "test"]) == 2
    assert evaluation.main(places) == 0
    assert (report.parent / "reconstruction-val.json").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.back=null", "release.quality: kind reconstruction is for data of kind renders with back: true"),
    ],
)
def test_what_cannot_be_evaluated_is_named(
    trained: tuple[Path, list[str]], change: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, places = trained
    assert evaluation.main([*places, change]) == 2
    assert message in capsys.readouterr().err


def test_a_dry_run_needs_no_phase_that_was_not_trained(
    tmp_path: Path, trained: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, places = trained
    assert cli.main([places[0], "--runs", str(tmp_path), *places[3:], "--phase", "shape", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "phase shape: MCCObjective" in printed and "views/s" in printed


def test_starter_recipe_holds_out_categories() -> None:
    plan = recipe.read(Path("starters/recipes/reconstruct.yaml"))
    assert isinstance(plan.data, Renders)
    libraries = [library for package in plan.data.packages for library in package.libraries]
    held_out = {"Vehicles": "test", "Bathroom": "test", "Lights": "test", "Office": "val", "Bedroom": "val"}
    assert len(libraries) == 4 and all(library.parts == held_out and library.views == 24 for library in libraries)
    full = plan.model_of(plan.phases[0]).resolve(0)
    network = MCC(full)
    assert network.back is not None and sum(weights.numel() for weights in network.back.parameters()) <= 1_500_000
