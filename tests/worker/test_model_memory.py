"""Several bundles share a bound of memory: those used longest ago leave it, and come back when they are asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle import Bundle
from models.loading import load
from server.worker.backends.runner import Backends, ModelMemory
from server.worker.device_layout import Layout
from tests.support.bundles.vit import write_tiny_vit

LAYOUT = Layout(torch.device("cpu"), slots=1, threads=1, largest_batch=4)
PICTURES = {"pixels": np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)}
OFF = {"merge": [0, 0]}


@pytest.fixture
def bundles(tmp_path: Path) -> list[Bundle]:
    return [write_tiny_vit(tmp_path, name) for name in ("one", "two", "three")]


def holders(bundles: list[Bundle], memory: ModelMemory) -> list[Backends]:
    return [Backends(bundle, load(bundle, packed=True), LAYOUT, "eager", memory=memory) for bundle in bundles]


def loaded_names(holders: list[Backends]) -> list[str]:
    return [holder.spec.name for holder in holders if holder.nbytes]


def test_the_bundle_that_was_used_longest_ago_leaves_first(bundles: list[Bundle]) -> None:
    one, two, three = backends = holders(bundles, ModelMemory(2 * bundles[0].spec.weights.bytes))
    for holder in (one, two, one, three):
        holder.forward(PICTURES, OFF)
    assert loaded_names(backends) == ["one", "three"]
    assert all(parameter.is_meta for parameter in two.model.model.parameters()), "nothing of it is left"


def test_it_answers_the_same_when_it_comes_back(bundles: list[Bundle]) -> None:
    one, two, _ = backends = holders(bundles, ModelMemory(bundles[0].spec.weights.bytes))
    before = one.forward(PICTURES, OFF)["logits"]
    two.forward(PICTURES, OFF)
    assert loaded_names(backends) == ["two", "three"], "three has not been used, so it is not counted"
    np.testing.assert_array_equal(one.forward(PICTURES, OFF)["logits"], before)


def test_what_runs_stays(bundles: list[Bundle]) -> None:
    memory = ModelMemory(1)
    one, two, _ = backends = holders(bundles, memory)
    with memory.using(one):
        two.forward(PICTURES, OFF)
        assert "one" in loaded_names(backends)
    two.forward(PICTURES, OFF)
    assert "one" not in loaded_names(backends)


def test_unreturnable_bundle_is_an_error_of_its_batch_only(bundles: list[Bundle]) -> None:
    one, two, _ = holders(bundles, ModelMemory(1))
    one.forward(PICTURES, OFF)
    two.forward(PICTURES, OFF)
    content = bundles[0].weights_path.read_bytes()
    bundles[0].weights_path.unlink()
    with pytest.raises(Exception, match="missing"):
        one.forward(PICTURES, OFF)
    bundles[0].weights_path.write_bytes(content)
    assert len(one.forward(PICTURES, OFF)["logits"]) == 2


def test_weights_count_in_the_format_that_they_have_in_memory(bundles: list[Bundle]) -> None:
    """Not in that of the file: bundles store what is served in float32 in half of its bytes, for example."""
    full, half = (Backends(bundles[0], load(bundles[0], dtype=dtype), LAYOUT, "eager") for dtype in (torch.float32, torch.bfloat16))
    elements = sum(parameter.numel() for parameter in load(bundles[0]).model.parameters())
    assert (full.nbytes, half.nbytes) == (4 * elements, 2 * elements)


def test_weights_of_jobs_of_several_steps_count_and_stay(bundles: list[Bundle]) -> None:
    memory, stepwise = ModelMemory(2 * bundles[0].spec.weights.bytes), load(bundles[2])
    one, two, _ = backends = holders(bundles, memory)
    one.forward(PICTURES, OFF)
    two.forward(PICTURES, OFF)
    memory.pin(stepwise, bundles[2].spec.weights.bytes)
    assert loaded_names(backends) == ["two", "three"], "one has left, and three was never used"
    del stepwise
    one.forward(PICTURES, OFF)
    assert loaded_names(backends) == ["one", "two", "three"], "its bundle was unloaded"


def test_room_is_made_before_weights_come_back(bundles: list[Bundle]) -> None:
    one, two, _ = backends = holders(bundles, ModelMemory(bundles[0].spec.weights.bytes))
    one.forward(PICTURES, OFF)
    two.forward(PICTURES, OFF)
    seen: list[list[str]] = []
    restore = one.restore
    one.restore = lambda: (seen.append(loaded_names(backends)), restore())[1]  # type: ignore[method-assign, func-returns-value]
    one.forward(PICTURES, OFF)
    assert seen == [["three"]]
