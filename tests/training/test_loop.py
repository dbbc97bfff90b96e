"""Options of the loop that change how a run computes, and not what: and those that do."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from models.registry import architectures
from tests.training import tiny_recipe
from training import cli, estimate, loop, recipe, stop_requests
from training.estimate import Estimate, total
from training.objectives.mae import MAEObjective
from training.phase_runner import WEIGHTS
from training.run_logger import read_log


def losses(content: dict[str, Any], folder: Path, *changes: str) -> list[float]:
    """Return the losses of the first phase, trained in `folder`."""
    file = tiny_recipe.write(content, folder / "recipe.yaml")
    assert cli.main([str(file), *changes, "--phase", "pretrain", "--runs", str(folder), "--no-tensorboard"]) == 0
    return [row["loss"] for row in read_log(folder / "colours-0.1/pretrain")]


@pytest.fixture
def content(colours: Path) -> dict[str, Any]:
    return tiny_recipe.recipe(colours)


def test_tiny_numbers_are_zero_in_the_backward_pass_alone(content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_number() -> bool:
        return float(torch.tensor(1e-40) * 1) > 0

    forward, seen = MAEObjective.forward, set[tuple[str, bool]]()

    def watch(self: MAEObjective, batch: Any) -> Any:
        result = forward(self, batch)
        seen.add(("forward", is_number()))
        result["loss"].register_hook(lambda _: seen.add(("backward", is_number())))
        return result

    monkeypatch.setattr(MAEObjective, "forward", watch)
    losses(content, tmp_path)
    assert seen == {("forward", True), ("backward", False)} and is_number()


@pytest.mark.parametrize("option", ["micro_batch=3", "checkpoint_activations=true", "workers=2", "log_every=1"])
def test_how_a_run_computes_does_not_change_its_losses(content: dict[str, Any], tmp_path: Path, option: str) -> None:
    """The tolerance is 1e-6, since gradients of micro-batches are added in another order."""
    content["phases"][0]["optimiser"]["eps"] = 1e-4
    for name in ("plain", "other"):
        (tmp_path / name).mkdir()
    assert losses(content, tmp_path / "other", f"phases.0.loop.{option}") == pytest.approx(losses(content, tmp_path / "plain"), rel=1e-6)


def test_a_reversible_trunk_trains_like_any_other(content: dict[str, Any], tmp_path: Path) -> None:
    falling = losses(content, tmp_path, "model.config.reversible=true", "phases.0.loop.epochs=4")
    assert sum(falling[-9:]) < sum(falling[:9])


def test_bfloat16_is_near_to_float32(content: dict[str, Any], tmp_path: Path) -> None:
    for name in ("fine", "coarse"):
        (tmp_path / name).mkdir()
    coarse = losses(content, tmp_path / "coarse", "phases.0.loop.precision=bf16")
    assert coarse == pytest.approx(losses(content, tmp_path / "fine"), rel=0.02)


def test_a_phase_gives_away_the_moving_average_of_its_weights(content: dict[str, Any], tmp_path: Path) -> None:
    """The decay is 0.5: half of the weights after the last step, a quarter of those before, and so on."""
    content["phases"][0]["loop"] = {"epochs": 3 / 9, "batch_size": 8, "checkpoint_every": 1}
    trail = []
    for steps in (1, 2, 3):
        (tmp_path / str(steps)).mkdir()
        content["phases"][0]["loop"]["epochs"] = steps / 9
        content["phases"][0]["schedule"] = {"kind": "constant"}
        losses(content, tmp_path / str(steps))
        trail.append(load_file(tmp_path / str(steps) / "colours-0.1/pretrain" / WEIGHTS))
    (tmp_path / "average").mkdir()
    losses(content, tmp_path / "average", "phases.0.loop.ema=0.5")
    arrays = load_file(tmp_path / "average/colours-0.1/pretrain" / WEIGHTS)
    plan = recipe.read(tmp_path / "average/recipe.yaml")
    torch.manual_seed(plan.seed)
    settings = plan.model_of(plan.phases[0])
    start = architectures()["mae"].build(settings.resolve(labels=3)).state_dict()
    for name, value in arrays.items():
        expected = start[name] / 8 + trail[0][name] / 8 + trail[1][name] / 4 + trail[2][name] / 2
        assert torch.allclose(value, expected, atol=1e-6), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("phases.0.loop.precision=fp16", "phases.0.loop.precision: fp16 needs a GPU"),
        ("phases.0.loop.batch_size=100", "phases.0.loop.batch_size: 100 is more than the data has (72 images)"),
        ("phases.0.loop.epochs=0.01", "phases.0.loop.epochs: 0.01 of 9 steps are none; give more"),
        ("phases.0.loop.epochs=.inf", "phases.0.loop.epochs: Input should be a finite number"),
        ("phases.0.loop.sharding=fsdp", "phases.0.loop.sharding: fsdp needs several processes"),
        ("phases.0.objective.kind=lart", "phases.0.objective: model.architecture: the objective lart trains LART, not MAE"),
        ("phases.0.initial=neighbours", "initial: neighbours is for a DiffMAE, not for MAE"),
        ("phases.0.initial=nearest", "initial: nearest is for an MCC, not for MAE"),
        ("phases.0.start=nowhere.safetensors", "start: nowhere.safetensors cannot be read"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    content: dict[str, Any], tmp_path: Path, change: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tiny_recipe.write(content, tmp_path / "recipe.yaml")
    assert cli.main([str(file), change, "--runs", str(tmp_path), "--no-tensorboard"]) == 2
    assert message in capsys.readouterr().err


def test_dry_run_reports_cost_of_phases_and_leaves_nothing(
    content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tiny_recipe.write(content, tmp_path / "recipe.yaml")
    assert cli.main([str(file), "--dry-run", "--runs", str(tmp_path / "runs")]) == 0
    output = capsys.readouterr().out
    assert "phase pretrain: MAEObjective on 72 images" in output and "phase finetune: SupervisedObjective" in output
    assert "18 steps of 8" in output and "images/s" in output
    assert re.search(r"^in all about \d+\.\d minutes", output, re.MULTILINE)
    assert cli.main([str(file), "phases.0.start=nowhere.safetensors", "--dry-run", "--runs", str(tmp_path / "runs")]) == 2
    assert not (tmp_path / "runs").exists()


def test_total_of_long_phases_is_in_hours() -> None:
    assert total([Estimate("", 1e12, 1800.0), Estimate("", 1e12, 3600.0)]).startswith("in all about 1.5 hours and 2 TFLOP;")


def test_dry_run_omits_memory_that_it_cannot_see(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Check the case of a process that has taken more memory before."""
    monkeypatch.setattr(estimate, "_peak", lambda device: 1e9)
    assert cli.main([str(tiny_recipe.write(content, tmp_path / "recipe.yaml")), "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "waiting for data\n" in output and "activations and data took" not in output


def test_dry_run_measures_several_steps_despite_slow_first(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data workers start in it. Else a busy machine's estimate came from a single step."""
    clock = [0.0]
    step = loop._Trainer._step

    def slow_at_first(trainer: loop._Trainer, *arguments: Any) -> float:
        clock[0] += 0.1 if trainer.step else 60.0
        return step(trainer, *arguments)

    monkeypatch.setattr(loop._Trainer, "_step", slow_at_first)
    monkeypatch.setattr(stop_requests, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    file = tiny_recipe.write(content, tmp_path / "recipe.yaml")
    assert cli.main([str(file), "--dry-run", "--phase", "pretrain", "--runs", str(tmp_path / "runs")]) == 0
    assert clock[0] == pytest.approx(60 + 11 * 0.1)


def test_tensorboard_gets_scalars_and_images(content: dict[str, Any], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    content["phases"][0]["loop"]["checkpoint_every"] = 9
    file = tiny_recipe.write(content, tmp_path / "recipe.yaml")
    assert cli.main([str(file), "--phase", "pretrain", "--runs", str(tmp_path)]) == 0
    events = EventAccumulator(str(tmp_path / "colours-0.1/pretrain/tensorboard"))
    events.Reload()
    assert {"loss", "lr", "grad_norm", "images per second"} <= set(events.Tags()["scalars"])
    assert set(events.Tags()["images"]) >= {"masked", "predicted"}
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 19))
