"""Properties of every objective: all trained parameters get a gradient, samples do not depend on their order, two processes equal one."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from models.registry import architectures
from tests.support.forked_program import ForkedProcess
from tests.training.objectives.cases import CASES, assert_same_gradients, curate_rounds, gradients, make
from tests.training.objectives.two_processes import ROWS, SHARDED
from training import random_draws
from training.distributed import wrap_distributed
from training.errors import DataError, TrainingError
from training.objectives.protocols import ObjectiveContext
from training.objectives.registry import KINDS

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of two processes, each with half of the batch."""
    folder = tmp_path_factory.mktemp("two")
    files = (str(folder / "store"), str(folder / "result"))
    module = "tests.training.objectives.two_processes"
    processes = [ForkedProcess(module, str(rank), *files, environment=os.environ) for rank in (0, 1)]
    try:
        assert [process.wait(timeout=200) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    found: dict[str, Any] = torch.load(folder / "result")
    return found


@pytest.mark.parametrize("name", CASES)
def test_all_that_learns_gets_a_gradient_and_metrics_get_none(name: str) -> None:
    objective, batch = make(name)
    values = objective(batch)
    assert values["loss"].dim() == 0 and torch.isfinite(values["loss"])
    found = gradients(values["loss"], objective)  # raises for a parameter without
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    assert not any(value.requires_grad for key, value in values.items() if key != "loss")


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_a_function_of_weights_samples_and_their_draws(name: str) -> None:
    objective, batch = make(name)
    first = objective(batch)["loss"]
    torch.manual_seed(99)  # nothing comes from the global generator
    assert torch.equal(objective(batch)["loss"], first)
    other = objective(batch | {"draw": batch["draw"] + 1})["loss"]
    assert torch.equal(other, first) == (name in ("linear_probe", "hashtags", "lit", "cit"))  # these draw nothing


@pytest.mark.parametrize("name", CASES)
def test_half_precision_changes_little(name: str) -> None:
    objective, batch = make(name)
    expected = objective(batch)["loss"].item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(batch)["loss"]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=0.02)
    gradients(loss, objective)


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("make_supervised", "supervised_clips")])
def test_the_order_of_samples_does_not_matter(name: str) -> None:
    """But where neighbours are mixed."""
    objective, batch = make(name)
    order = torch.tensor([2, 0, 3, 1])
    turned = objective({key: value[order] for key, value in batch.items()})["loss"]
    torch.testing.assert_close(turned, objective(batch)["loss"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_with_half_of_the_batch_each_equal_one(name: str, two: dict[str, Any]) -> None:
    objective, batch = make(name)
    values = objective(batch)
    for key, value in values.items():
        torch.testing.assert_close(
            two[name]["values"][key], value.detach(), rtol=1e-5, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}"
        )
    assert_same_gradients(two[name]["gradients"], gradients(values["loss"], objective), 2e-5)


@pytest.mark.parametrize("name", SHARDED)
def test_sharded_parameters_get_the_same_gradients(name: str, two: dict[str, Any]) -> None:
    objective, batch = make(name)
    assert_same_gradients(two[f"{name} by fsdp"], gradients(objective(batch)["loss"], objective), 2e-5)


def test_single_numbers_cannot_be_split() -> None:
    objective, _ = make("cit")
    with pytest.raises(TrainingError, match=r"loop.sharding: fsdp cannot split single numbers \(model.logit_scale\); use ddp"):
        wrap_distributed(objective, "fsdp", "fp32", torch.device("cpu"))


def test_rows_are_gathered_with_the_gradients_that_all_ranks_ask(two: dict[str, Any]) -> None:
    assert torch.equal(two["reductions"]["gathered"], ROWS)
    assert torch.equal(two["reductions"]["gradient"], 2 * ROWS * (1 + 2))


def test_sums_and_means_are_over_ranks(two: dict[str, Any]) -> None:
    assert two["reductions"]["summed"] == 3
    assert two["reductions"]["mean"] == (10 * 1 + 2 * 3) / 4
    assert two["reductions"]["nothing"] == 0
    assert torch.equal(two["reductions"]["draw"], random_draws.batch_draw(torch.arange(4)))


def test_captions_are_chosen_alike_on_any_number_of_processes(two: dict[str, Any]) -> None:
    assert torch.equal(two["curated"], curate_rounds())


@pytest.mark.parametrize("kind", KINDS.ours)
def test_a_network_that_an_objective_cannot_train_is_refused(kind: str) -> None:
    settings = KINDS.read({"kind": kind})
    with pytest.raises(ValueError, match=rf"model.architecture: the objective {kind} trains .*, not Linear"):
        settings.build(torch.nn.Linear(2, 2), ObjectiveContext())


def test_data_that_lacks_what_an_objective_needs_is_named() -> None:
    objective, batch = make("mae")
    with pytest.raises(DataError, match="the objective needs pixels of every sample, and the data gives clip, draw"):
        objective({"draw": batch["draw"], "clip": batch["pixels"]})


def test_documentation_lists_every_objective_and_its_parts() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", (ROOT / "docs/training.md").read_text().split("## Objectives")[1].split("\n## ")[0], re.M)
    kinds = {kind: re.findall(r"`(\w+)`", item) for kind, item in rows}
    assert set(kinds) == set(KINDS.ours)
    named = {name for names in kinds.values() for name in names if name not in ("teacher", "curation", "back")}
    assert named <= set(architectures())
