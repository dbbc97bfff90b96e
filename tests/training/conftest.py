from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support import forked_program
from tests.training import tiny_recipe

forked_program.imports("training.cli")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 3 × 24 images."""
    return tiny_recipe.draw(tmp_path_factory.mktemp("data") / "colours", 24)
