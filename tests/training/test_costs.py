"""Costs in a dry run of every published recipe, without its data. Parameters are those of its published size."""

from __future__ import annotations

import functools
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.flops import forward_cost
from models.registry import architectures, sizes
from training import cli, costs, recipe
from training.recipe import Recipe

FILES = sorted(Path("training/recipes/published").absolute().glob("*.yaml"))
SOON = {"mae_base", "rev_vit_small", "tome"}
"""Recipes that are not left to the slow tests."""

ENCODER, TRUNK, TOWER = r"(?!decoder|noise_embed|time_embed|mask_token)", r"(?!head)", r"vision\."
PUBLISHED = {
    "audio_mae": [("pretrain", "86", ENCODER)],
    "cit": [("train", "216.8", "")],
    "diffmae": [("pretrain", "86", ENCODER)],
    "flip": [("masked", "413.2", ""), ("unmasked", "413.2", "")],
    "lart": [("pretrain", "51.8", ""), ("finetune", "51.8", "")],
    "mae_base": [("pretrain", "86", ENCODER), ("finetune", "86", TRUNK)],
    "mae_huge": [("finetune", "632", "")],
    "mae_large": [("finetune", "304", "")],
    "mae_linear_probe": [("probe", "86", TRUNK)],
    "mae_st": [("pretrain", "317.7", ""), ("finetune", "304.5", "")],
    "mavil": [("raw", "239.5", "")],
    "maws": [("mae", "85.80", ENCODER), ("hashtags", "85.798656", TRUNK), ("texts", "85.798656", TOWER)],
    "mcc": [("train", "202.141441", "")],
    "mvit": [("train", "34.54", "")],
    "rev_mvit": [("train", "39.69", "")],
    "rev_vit_base": [("train", "87", "")],
    "rev_vit_small": [("train", "22", "")],
    "tome": [("finetune", "304", "")],
}
"""Phases, the millions of parameters that paper, model zoo or released file have, and which of the network's they count, by name."""


def parameters(plan: Recipe, phase: str, counted: str) -> int:
    [found] = [each for each in plan.phases if each.name == phase]
    model = plan.model_of(found)
    known_values = found.published_data or plan.published_data
    assert known_values is not None
    with torch.device("meta"):
        network = architectures()[model.architecture].build(model.resolve(known_values.labels))
    return sum(value.numel() for name, value in network.named_parameters() if re.match(counted, name))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_published_recipe_has_published_parameter_count(file: Path) -> None:
    for phase, millions, counted in PUBLISHED[file.stem]:
        found = Decimal(parameters(recipe.read(file), phase, counted)) / 1_000_000
        assert round(found, -Decimal(millions).as_tuple().exponent) == Decimal(millions), phase


BLOCKS = 2
STAGES = 5
"""Blocks of an MViT's first three stages."""
BY_BLOCK = ("q_strides", "width_growth", "head_growth", "transitions")
"""Settings of an MViT: blocks, or tuples that begin with one."""


def shallow(plan: Recipe) -> list[str]:
    """Return changes that leave a few blocks of each part: the others are like them."""
    changes = []
    for number, phase in enumerate(plan.phases):
        config = vars(plan.model_of(phase).resolve(1000))
        model = f"phases.{number}.model" if phase.model else "model"
        deep = [name for name in ("depth", "text_depth", "decoder_depth") if config.get(name, 0) > BLOCKS and "q_strides" not in config]
        changes += [f"{model}.config.{name}={BLOCKS}" for name in deep]
        if "q_strides" in config:
            retained = {name: [one for one in config[name] if np.ravel(one)[0] < STAGES] for name in BY_BLOCK if name in config}
            changes += [f"{model}.config.{name}={json.dumps(value)}" for name, value in {"depth": STAGES, **retained}.items()]
    return changes


@pytest.mark.timeout(120)
@pytest.mark.parametrize("file", [pytest.param(file, id=file.stem, marks=() if file.stem in SOON else pytest.mark.slow) for file in FILES])
def test_a_published_recipe_is_counted_without_its_data(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([str(file), "--dry-run", *shallow(recipe.read(file))]) == 0
    output = capsys.readouterr().out
    phases = recipe.read(file).phases
    assert re.findall(r"^phase (\S+):", output, re.MULTILINE) == [phase.name for phase in phases]
    for line in ("weights", "activations for each sample", r"[TP]FLOP in a step", "speed +not measured without the data"):
        assert len(re.findall(line, output)) == len(phases), line
    assert not list(tmp_path.iterdir())


def read(name: str, *changes: str) -> Recipe:
    return recipe.read(Path(f"training/recipes/published/{name}.yaml"), changes)


@functools.cache
def count_step(name: str, *changes: str, phase: int = 0) -> costs.StepCost:
    plan = read(name, *changes)
    return costs.count(plan, plan.phases[phase], labels=1000)


SMALL = ("phases.1.model.size=vit_small_patch16", "phases.1.model.config={pool: mean}", "phases.1.start=null")


def small(*changes: str) -> costs.StepCost:
    """Read the recipe of a ViT-S that is trained with labels."""
    return count_step("mae_base", *SMALL, *changes, phase=1)


def test_the_backward_pass_costs_twice_the_forward_pass() -> None:
    forward = forward_cost("vit", sizes()["vit_small_patch16"].config).flops
    assert small().flops == pytest.approx(3 * forward, rel=0.01)


def test_reversible_and_recomputed_blocks_trade_flops_for_memory() -> None:
    plain, again, reversible = small(), small("phases.1.loop.checkpoint_activations=true"), count_step("rev_vit_small")
    for cheaper in (again, reversible):
        assert 1.2 * plain.flops < cheaper.flops < 1.36 * plain.flops
        assert cheaper.activations < plain.activations / 4


def test_short_precision_takes_less_memory_and_depth_more() -> None:
    plain = small()
    assert 1.3 < small("phases.1.loop.precision=fp32").activations / plain.activations < 2
    deeper = small("phases.1.model.config={pool: mean, depth: 24}")
    assert deeper.activations == pytest.approx(2 * plain.activations, rel=0.05)
    assert deeper.parameters > 1.9 * plain.parameters


def test_activation_memory_is_saved_tensors_and_layer_gradient() -> None:
    plan = read("mae_base", *SMALL, "phases.1.loop.precision=fp32", "phases.1.model.config={pool: mean, depth: 6}")
    expected = costs.count(plan, plan.phases[1], labels=10).activations * costs._SAMPLES
    assert 1 < expected / real_bytes(plan) < 1.1


def real_bytes(plan: Recipe) -> int:
    """Return the maximum bytes that autograd keeps for the backward pass, by its own hooks."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from training.objectives.protocols import ObjectiveContext

    phase = plan.phases[1]
    network = architectures()["vit"].build(plan.model_of(phase).resolve(10))
    objective = phase.objective.build(network, ObjectiveContext()).train()
    retained: dict[int, Any] = {parameter.untyped_storage().data_ptr(): 0 for parameter in objective.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        retained.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    count = costs._SAMPLES
    batch = {"pixels": torch.randn(count, 3, 224, 224), "label": torch.arange(count) % 10, "draw": torch.arange(count)}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        loss = objective(batch)["loss"]
    assert loss.requires_grad
    return sum(retained.values())
