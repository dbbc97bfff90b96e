"""A recipe for camera moves: the bundle that it ends in and what it is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from models import bundle
from starters.evaluation import cards as model_card
from starters.tests import moving
from training import cli
from training.evaluation import __main__ as evaluation


def small(cache: Path) -> dict[str, Any]:
    config = {"image_size": 48, "patch_size": 16, "frames": 8, "patch_frames": 4, "width": 16, "depth": 2, "heads": 1}
    quality = {
        "kind": "clips",
        "videos": 10,
        "seconds": 0.5,
        "short_side": 48,
        "flow_clips": 20,
        "ladder": {"min_throughput": 1.01, "batch_size": 1, "rounds": 3, "rungs": [{"name": "r2", "schedule": 2}]},
    }
    return {
        "name": "tiny-clips",
        "version": "1.0.0",
        "license": "CC0-1.0",
        "preprocess": moving.PREPROCESS,
        "clip": moving.CLIP,
        "data": moving.data(cache),
        "phases": [
            {
                "name": "pretrain",
                "model": {
                    "architecture": "video_mae_pretraining",
                    "config": config | {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 1, "predicted_frames": 4},
                },
                "objective": {"kind": "mae"},
                "optimiser": {"lr": 0.001},
                "loop": {"epochs": 0.5, "batch_size": 10},
            },
            {
                "name": "finetune",
                "start": "pretrain",
                "model": {"architecture": "video_mae", "config": config},
                "objective": {"kind": "supervised", "merge": [0, 2]},
                "optimiser": {"lr": 0.001},
                "loop": {"epochs": 0.5, "batch_size": 10},
            },
        ],
        "release": {"task": "actions", "quality": quality},
    }


def test_recipe_ends_in_bundle_with_accuracy_of_moves(tmp_path: Path) -> None:
    file, places = tmp_path / "recipe.yaml", ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
    file.write_text(yaml.safe_dump(small(tmp_path / "cache")))
    assert cli.main([str(file), *places, "--bundles", str(tmp_path / "bundles"), "--no-tensorboard"]) == 0
    made = bundle.read(tmp_path / "bundles/tiny-clips/1.0.0")
    made.verify()
    found = made.spec.quality["clips"]
    assert found["split"] == "test" and found["videos"] == 10
    assert found["baselines"]["optical flow"]["accuracy"]["value"] > 0.1  # it has learnt something from twenty clips
    assert [rung.name for rung in made.spec.ladder] == ["r2"] and made.spec.clip is not None and len(made.spec.labels) == 10
    card = (made.path / "README.md").read_text(encoding="utf-8")
    assert card == model_card.render(made.spec) and "tiny-pictures 1.0.0: CC0-1.0." in card and "labels a clip with one of 10" in card

    report = tmp_path / "runs/tiny-clips-1.0.0/evaluation/clips-test.json"
    before = report.read_text()
    assert evaluation.main([str(file), *places, "--split", "test"]) == 0 and report.read_text() == before
    assert evaluation.main([str(file), "release.quality.videos=20", *places, "--split", "test"]) == 2  # it is looked at once
