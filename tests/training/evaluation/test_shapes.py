from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from models import bundle
from models.mcc.model import MCC
from models.mcc.nearest import look_at_nearest
from models.spec import Space
from tests.models.mcc.test_mcc_nearest import CONFIG
from tests.training import meshes
from training import command
from training.evaluation import __main__ as evaluation
from training.evaluation.cards import card as model_card
from training.evaluation.reconstruction.shapes import CARVED, EXTRUDED, JOINED, SEEN, occupancies
from training.evaluation.reconstruction.surfaces import Match, Truth, extruded, sampled


def test_precision_and_recall_of_known_points() -> None:
    truth = Truth(np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]], np.float32), distance=0.1)
    found = truth.match(np.array([[0.09, 0, 0], [0, 0.05, 0], [1.05, 0, 0], [0, 0, 0.11]], np.float32))
    assert found == Match(precision=0.75, recall=0.5)
    assert found.f1 == pytest.approx(0.6)
    assert truth.match(np.zeros((0, 3), np.float32)) == Match(0.0, 0.0)


def test_all_thresholds_at_once_give_what_each_alone_gives() -> None:
    dice = np.random.default_rng(0)
    truth, points = Truth(dice.random((500, 3), np.float32), 0.1), dice.random((400, 3), np.float32) * np.float32(1.3)
    probabilities, thresholds = dice.random(400, np.float32), [0.2, 0.6, 0.9, 0.9999]
    assert truth.matches(points, probabilities, thresholds) == [truth.match(points[probabilities > t]) for t in thresholds]


def test_an_extrusion_is_a_hollow_body_behind_what_is_seen() -> None:
    grid = np.stack([*np.meshgrid(np.arange(5.0), np.arange(5.0)), np.full((5, 5), 1000.0)], axis=-1).astype(np.float32)
    body = extruded(grid, np.ones((5, 5), np.bool_), np.zeros(3, np.float32), depth=2.0, step=0.5)
    depths = np.round(body[:, 2] - 1000, 1)
    assert {value: int((depths == value).sum()) for value in (0.0, 0.5, 1.0, 1.5, 2.0)} == {0.0: 25, 0.5: 16, 1.0: 16, 1.5: 16, 2.0: 25}
    assert len(body) == 98


def test_adaptive_asking_asks_less_and_is_told_the_same() -> None:
    torch.manual_seed(0)
    model = MCC(CONFIG).eval()
    look_at_nearest(model)
    axis = torch.linspace(-1, 1, 32)
    points = torch.stack([axis.expand(32, -1), axis.unsqueeze(1).expand(-1, 32), torch.zeros(32, 32)], dim=-1)
    sample = {"pixels": torch.zeros(3, 48, 48), "points": points, "valid": torch.ones(32, 32, dtype=torch.bool)}
    space = Space(extent=1.5, reach=0.1)
    grid, dense = occupancies(model, sample, space, 0.1)
    threshold = float(np.quantile(dense, 0.9))
    asked, told = occupancies(model, sample, space, 0.1, threshold)
    assert len(grid) == 30**3 > 1.5 * len(asked)
    known = {tuple(point): probability for point, probability in zip(np.round(grid, 3).tolist(), dense.tolist(), strict=True)}
    assert told == pytest.approx([known[tuple(point)] for point in np.round(asked, 3).tolist()], abs=1e-5)
    assert (told > threshold).sum() > 0.9 * (dense > threshold).sum()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[str]]:
    """The folder of a small run with its bundle."""
    folder = tmp_path_factory.mktemp("reconstruct")
    content = meshes.recipe(folder / "cache")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    places = ["--runs", str(folder / "runs"), "--cache", str(folder / "cache")]
    assert command.main([str(folder / "recipe.yaml"), *places, "--bundles", str(folder / "bundles"), "--no-tensorboard"]) == 0
    return folder, content, places


def test_a_recipe_ends_in_a_bundle_that_says_how_well_it_reconstructs(trained: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder, content, _ = trained
    made = bundle.read(folder / "bundles/tiny-reconstruct/1.0.0")
    made.verify()
    spec = made.spec
    assert spec.task == "reconstruct" and spec.space is not None
    assert spec.space.model_dump(include=set(content["space"])) == content["space"]
    ways = [row["name"] for row in spec.quality["reconstruction"]]
    assert ways == [SEEN, EXTRUDED, CARVED, JOINED, "MCC, threshold 0.1", "MCC, threshold 0.5"]
    assert spec.quality["reconstruction"][3]["recall"]["value"] > 0.1
    assert spec.quality["views"] == 4 and [row["category"] for row in spec.quality["by_object"]] == ["books", "books"]
    seen, extruded_ones = spec.quality["reconstruction"][:2]
    assert seen["precision"]["value"] > 0.9 > extruded_ones["precision"]["value"]  # a sheet has nothing behind it
    assert 0.1 < seen["recall"]["value"] <= extruded_ones["recall"]["value"]
    assert spec.provenance["data"]["objects"] == {"balls": 3, "composed shapes": 2}
    assert spec.provenance["data"]["packages"][0]["license"] == "MIT"
    card = (made.path / "README.md").read_text(encoding="utf-8")
    assert card == model_card.render(spec)
    assert "| shapes | 1.0.0 | MIT |" in card and "### Who wins where" in card


def test_a_released_bundle_is_evaluated_again_without_its_training(trained: tuple[Path, dict[str, Any], list[str]], tmp_path: Path) -> None:
    folder, _, places = trained
    copy = tmp_path / "tiny-reconstruct/1.0.0"
    shutil.copytree(folder / "bundles/tiny-reconstruct/1.0.0", copy)
    before = bundle.read(copy).spec
    (copy / bundle.SPEC_FILE).write_bytes(before.model_copy(update={"quality": {**before.quality, "views": 0}}).to_bytes())
    runs = ["--runs", str(tmp_path / "runs"), *places[2:]]
    assert evaluation.main([str(folder / "recipe.yaml"), "--bundle", str(copy), *runs]) == 0
    again = bundle.read(copy).spec
    assert again.quality == before.quality and again.weights == before.weights
    assert (copy / "README.md").read_text(encoding="utf-8") == model_card.render(again)


def test_points_on_a_surface_are_spread_evenly_however_it_is_divided() -> None:
    corners = np.array([[0, 0, 0], [2, 0, 0], [2, 1, 0], [0, 1, 0], [0.1, 0, 0], [0.1, 1, 0]], np.float32)
    faces = np.array([[0, 4, 5], [0, 5, 3], [4, 1, 2], [4, 2, 5]])
    points = sampled(corners, faces, 2000, np.random.default_rng(0))
    assert len(points) == pytest.approx(4000, abs=2) and (points >= 0).all() and (points <= [2, 1, 0]).all()
    assert (points[:, 0] < 0.1).mean() == pytest.approx(0.05, abs=0.02)
    assert sampled(corners, faces[:0], 2000, np.random.default_rng(0)).shape == (0, 3)


def test_evaluating_again_reads_what_was_scored(
    trained: tuple[Path, dict[str, Any], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, places = trained
    [rows] = (folder / "runs/tiny-reconstruct-1.0.0/evaluation").glob("reconstruction-*.jsonl")
    whole = rows.read_text()
    rows.write_text(whole[: whole.index("\n") + 20])  # torn in the second row
    assert evaluation.main([str(folder / "recipe.yaml"), *places]) == 0
    assert rows.read_text() == whole
    assert "quality.json" in capsys.readouterr().out
