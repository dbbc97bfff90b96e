"""Starting values that a recipe asks for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from models.systems.diffmae.model import DiffMAE, DiffMAEConfig
from training import start_weights
from training.recipe import Initial

CONFIG = DiffMAEConfig(
    image_size=(96, 96), patch_size=8, width=224, depth=1, heads=4, mlp_ratio=2, decoder_width=224, decoder_depth=2, decoder_heads=4
)


@pytest.fixture
def restored() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("restored")
def test_the_number_of_threads_changes_no_bit() -> None:
    """A run that goes on with more of them would be refused as another one."""
    made = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        model = DiffMAE(CONFIG)
        start_weights.apply_initial(model, Initial.NEIGHBOURS)
        assert torch.get_num_threads() == threads
        made.append(model.state_dict())
    for other in made[1:]:
        assert all(torch.equal(value, other[name]) for name, value in made[0].items())
