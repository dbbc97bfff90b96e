from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from training import phases, recipe
from training.data import flags
from training.loop import CHECKPOINT, TrainingError


def run(recipe_file: Path, cache: Path, runs: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "training", str(recipe_file), "--only", "scratch", "--cache", str(cache), "--runs", str(runs)]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})


def weights(runs: Path) -> tuple[int, dict[str, torch.Tensor]]:
    state = torch.load(runs / "tiny-0.1/scratch" / CHECKPOINT, weights_only=True)
    return state["step"], state["objective"]


def test_a_run_killed_in_the_middle_ends_with_the_same_weights(tiny_recipe: dict[str, Any], cache: Path, tmp_path: Path) -> None:
    long = {**tiny_recipe, "checkpoint_every": 3, "comparison_epochs": 40}
    file = tmp_path / "long.yaml"
    file.write_text(yaml.safe_dump(long))
    whole = run(file, cache, tmp_path / "whole")
    killed = run(file, cache, tmp_path / "killed")
    checkpoint = tmp_path / "killed/tiny-0.1/scratch" / CHECKPOINT
    limit = time.monotonic() + 120
    while not checkpoint.is_file():
        assert killed.poll() is None and time.monotonic() < limit
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(30) == -signal.SIGKILL
    reached, _ = weights(tmp_path / "killed")
    assert run(file, cache, tmp_path / "killed").wait(120) == 0
    assert whole.wait(120) == 0

    steps, uninterrupted = weights(tmp_path / "whole")
    steps_again, resumed = weights(tmp_path / "killed")
    assert 0 < reached < steps == steps_again
    assert all(torch.equal(uninterrupted[name], resumed[name]) for name in uninterrupted)


def test_a_checkpoint_of_another_recipe_is_not_continued(tiny_recipe: dict[str, Any], cache: Path, tmp_path: Path) -> None:
    plan = recipe.Recipe.model_validate(tiny_recipe)
    data = flags.build(plan.data, cache)
    start = phases.untrained(plan).state_dict()
    phases.finetune(plan, data, tmp_path, start)
    other = plan.model_copy(update={"finetune": plan.finetune.model_copy(update={"lr": 0.1})})
    with pytest.raises(TrainingError, match="belongs to a run with other settings"):
        phases.finetune(other, data, tmp_path, start)


def test_a_finished_run_is_only_loaded(tiny_recipe: dict[str, Any], cache: Path, tmp_path: Path) -> None:
    plan = recipe.Recipe.model_validate(tiny_recipe)
    data = flags.build(plan.data, cache)
    first = phases.pretrain(plan, data, tmp_path).state_dict()
    second = phases.pretrain(plan, data, tmp_path).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["mask_token"], phases.untrained(plan).state_dict()["mask_token"])
