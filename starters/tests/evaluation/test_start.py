"""Phases that start with a look at neighbours."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from training import cli
from training.phase_runner import WEIGHTS


def test_a_stopped_phase_ends_as_one_that_was_never_stopped(recipe_file: Path, packages: Path, tmp_path: Path) -> None:
    def train(runs: Path, *changes: str) -> Path:
        common = ["--phase", "begin", "--runs", str(runs), "--cache", str(packages), "--no-tensorboard"]
        assert cli.main([str(recipe_file), *changes, *common]) == 0
        return runs / "tiny-inpaint-1.0.0/begin" / WEIGHTS

    complete = load_file(train(tmp_path / "whole"))
    assert not train(tmp_path / "stopped", "phases.0.loop.max_steps=1").exists()
    resumed = load_file(train(tmp_path / "stopped"))
    assert all(torch.equal(value, resumed[name]) for name, value in complete.items())
