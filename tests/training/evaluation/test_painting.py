"""A network that is evaluated as it paints: its phase goes on after a stop, and what is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from models.bundle import BundleSpec
from models.diffmae.model import DiffMAE, DiffMAEConfig
from models.media import patchmatch
from models.spec import Preprocess, Weights
from tests.training.collection import deb
from training import recipe
from training.command import main as train
from training.data.packages import DebianPackage, PyPIPackage
from training.errors import DataError
from training.evaluation.cards import painting as painting_card
from training.evaluation.filling import painting
from training.evaluation.filling.photographs import CROP, crops
from training.evaluation.settings import PaintingQuality, Split
from training.evaluation.sources import Photographs
from training.phases import WEIGHTS
from training.starters.images.clip_art import ClipArt
from training.watching import read_log

NAMES = ("beach", "canal", "dune", "elm", "fjord")


@pytest.fixture(scope="module")
def settings(content: dict[str, Any], packages: Path, tmp_path_factory: pytest.TempPathFactory) -> PaintingQuality:
    """The recipe's, with tiny data."""
    root = tmp_path_factory.mktemp("photographs") / "tree"
    (root / "usr/share").mkdir(parents=True)
    dice = np.random.default_rng(0)
    for name in NAMES:
        blobs = cv2.resize(dice.integers(0, 256, (9, 12, 3), np.uint8), (960, 720), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(root / f"usr/share/{name}.jpg"), blobs)
    package = DebianPackage.model_validate(deb(packages, "tiny-photographs", root))
    release = recipe.read(Path("training/recipes/painter.yaml")).release
    assert release is not None and isinstance(release.quality, PaintingQuality)
    return release.quality.model_copy(
        update={
            "drawings": ClipArt.model_validate(content["data"] | {"part": "test"}),
            "images": 2,
            "photographs": Photographs(package=package, folder="usr/share", validation=["beach", "dune"], test=["canal", "elm"], crops=2),
            "features": PyPIPackage.model_validate(content["release"]["quality"]["features"]),
            "steps": 2,
        }
    )


def preprocess(content: dict[str, Any]) -> Preprocess:
    return Preprocess.model_validate(content["preprocess"])


def test_crops_of_a_photograph_do_not_depend_on_the_others(settings: PaintingQuality, packages: Path) -> None:
    asked = settings.photographs
    both = crops(asked.package, asked.folder, ["dune", "beach"], 3, packages)
    assert list(both) == ["beach", "dune"] and all(crop.shape == (CROP, CROP, 3) for made in both.values() for crop in made)
    [alone] = crops(asked.package, asked.folder, ["dune"], 2, packages).values()
    assert all(np.array_equal(one, other) for one, other in zip(alone, both["dune"], strict=False))
    with pytest.raises(DataError, match=r"tiny-photographs 1.0-1 has no photograph gulf; it has beach, canal"):
        crops(asked.package, asked.folder, ["gulf"], 2, packages)


def test_splits_share_no_drawing_and_no_photograph(settings: PaintingQuality, content: dict[str, Any], packages: Path) -> None:
    of = {split: painting.pictures(settings, preprocess(content), split, packages) for split in Split}
    for kind in ("drawings", "photographs"):
        shown = [{picture.numpy().tobytes() for picture in of[split][kind].pixels} for split in Split]
        assert shown[0] and shown[1] and not shown[0] & shown[1]
    assert len(of[Split.TEST]["drawings"].pixels) == 2
    assert of[Split.TEST]["photographs"].groups.tolist() == [0, 0, 1, 1]


@pytest.fixture(scope="module")
def report(settings: PaintingQuality, content: dict[str, Any], packages: Path) -> Mapping[str, Any]:
    """Of the test split, by a network that knows nothing; its flags are not restored."""
    if not patchmatch.installed():
        pytest.skip("patchmatch-cython has no wheel for this machine")
    torch.manual_seed(0)
    config = DiffMAEConfig(
        **{**content["model"]["config"], "image_size": (32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}, mask_channel=True, head_width=4
    )
    return painting.filled(settings, DiffMAE(config).eval(), preprocess(content), Split.TEST, packages, print)


def test_all_ways_are_compared_on_the_same_holes(report: Mapping[str, Any]) -> None:
    ways = ["network", "network-exemplar", "PatchMatch", "Telea", "Navier-Stokes"]
    for kind, count in (("drawings", 2), ("photographs", 2)):
        assert list(report[kind]) == ways
        assert report[kind]["network"]["value"]["n"] == count, "errors are over drawings, and over photographs"
        for way in ways[1:]:
            told = [report[kind][one]["value"]["value"] for one in ("network", way)]
            assert report[kind][way]["network_minus_this"]["value"] == pytest.approx(told[0] - told[1], abs=3e-5)
        each = [report["holes"][kind][hole]["Telea"]["value"]["value"] for hole in ("boxes", "strokes")]
        assert report[kind]["Telea"]["value"]["value"] == pytest.approx(sum(each) / 2, abs=2e-5)
    assert report["met"] is False


@pytest.mark.parametrize(("met", "said"), [(True, "is met."), (False, "is missed, so `auto` fills holes with patches of the image.")])
def test_the_card_says_whether_the_target_is_met(
    report: Mapping[str, Any], settings: PaintingQuality, content: dict[str, Any], met: bool, said: str
) -> None:
    measured = {"value": 0.5, "standard_error": 0.01}
    rows = {"restored": {"value": measured}, "PatchMatch": {"value": measured, "restored_minus_this": measured}}
    restoring = {"flags": rows, "sources": {}, "emoji": rows, "hidden": {"left": 0.5}, "steps": 2, "temperature": 1.0}
    spec = BundleSpec(
        name="painter",
        version="1",
        task="inpaint",
        architecture="diffmae",
        config={},
        preprocess=preprocess(content),
        license="CC0-1.0",
        quality={"painting": {**report, "met": met, "restoring": restoring}},
        provenance={
            "recipe": {"release": {"quality": {"target": settings.target}}},
            "data": {"packages": [{"name": "art", "version": "1"}], "creators": {"CC-BY-3.0": ["Ann", "Bob"]}},
        },
        weights=Weights(sha256="0" * 64, bytes=0),
    )
    card = " ".join(painting_card.section(spec))
    assert f"standard errors, {said}" in card and "Textures under CC-BY-3.0 are by Ann, Bob." in card
    assert card.count("| network-exemplar |") == 6 and "50.0 ± 2.0 %" in card


def test_a_phase_that_is_stopped_ends_with_the_weights_of_one_that_was_not(content: dict[str, Any], packages: Path, tmp_path: Path) -> None:
    """The discriminator, and what the optimiser knows of it, are in the checkpoint."""
    config = content["model"]["config"] | {"mask_channel": True, "head_width": 4}
    phase = content["phases"][0] | {"name": "painted"}
    phase["objective"] = phase["objective"] | {"painting": {"features": content["release"]["quality"]["features"], "width": 8}}
    phase["loop"] = phase["loop"] | {"epochs": 1.5, "ema": 0.9, "clip_norm": 1.0}
    plan = {name: value for name, value in content.items() if name != "release"}
    plan |= {"model": {"architecture": "diffmae", "config": config}, "phases": [phase]}
    file = tmp_path / "painted.yaml"
    file.write_text(yaml.safe_dump(plan))

    def run(runs: str, *changes: str) -> Path:
        arguments = [str(file), *changes, "--runs", str(tmp_path / runs), "--cache", str(packages), "--no-tensorboard"]
        assert train(arguments) == 0
        return tmp_path / runs / "tiny-inpaint-1.0.0/painted"

    whole = run("whole")
    run("halves", "phases.0.loop.max_steps=2")
    halves = run("halves")
    assert len(read_log(whole)) == 6 and read_log(halves) == read_log(whole)
    assert {"loss_pixel", "loss_l1", "loss_features", "loss_adversary", "loss_discriminator"} < read_log(whole)[0].keys()
    before, after = load_file(whole / WEIGHTS), load_file(halves / WEIGHTS)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not any("discriminator" in name for name in before), "what is given away is the painter alone"
