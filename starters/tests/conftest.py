from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from starters.tests import collection
from tests.training.conftest import one_thread

__all__ = ["one_thread"]


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
