from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from starters.tests import drawings

_LOOP = {"epochs": 0.5, "batch_size": 8}


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data cache that holds the packages of the tiny collection and of the tiny weights."""
    return tmp_path_factory.mktemp("inpaint-cache")


@pytest.fixture(scope="session")
def content(packages: Path) -> dict[str, Any]:
    """A recipe like the starter's, in small."""
    data, features = drawings.art(packages), drawings.lite0(packages)
    config = {
        "image_size": [32, 32],
        "patch_size": 8,
        "width": 24,
        "depth": 2,
        "heads": 2,
        "decoder_width": 24,
        "decoder_depth": 2,
        "decoder_heads": 2,
        "time_width": 16,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }
    phase = {"objective": {"kind": "diffmae", "masks": {"boxes": 1.0}}, "optimiser": {"lr": 0.001}, "loop": _LOOP}
    return {
        "name": "tiny-inpaint",
        "version": "1.0.0",
        "license": "public domain",
        "preprocess": {"image_size": 32, "short_side": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        "model": {"architecture": "diffmae", "config": config},
        "data": data,
        "phases": [
            {"name": "begin", "initial": "neighbours", **phase},
            {"name": "finish", "start": "begin", **phase},
        ],
        "release": {
            "task": "inpaint",
            "quality": {
                "kind": "inpainting",
                "data": data | {"part": "test"},
                "features": features,
                "images": 4,
                "samplings": [{"steps": 3}, {"steps": 1, "temperature": 0}],
            },
        },
    }


@pytest.fixture(scope="session")
def recipe_file(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "tiny-inpaint.yaml"
    file.write_text(yaml.safe_dump(content))
    return file
