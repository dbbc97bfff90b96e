from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from starters.tests import collection
from tests.harness import forked
from tests.training import shapes

forked.imports("training.command")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data cache that holds the packages of the tiny collection."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny_recipe(cache: Path) -> dict[str, Any]:
    return collection.recipe(collection.build(cache))


@pytest.fixture(scope="session")
def tiny_recipe_file(tiny_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny_recipe))
    return file


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 3 × 24 images."""
    return shapes.draw(tmp_path_factory.mktemp("data") / "colours", 24)
