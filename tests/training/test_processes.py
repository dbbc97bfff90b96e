"""Two processes train what one would have trained."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.bundle_schema import Preprocess
from tests.training import tiny_recipe
from training import cli
from training.data.image_folder import ImageFolderSettings
from training.data.sampler import BatchShare, EpochBatches
from training.data.source import SamplePreparation
from training.phase_runner import WEIGHTS
from training.run_logger import read_log

STEPS = 20
PREPROCESS = Preprocess(image_size=16, short_side=16, mean=(0.5,) * 3, std=(0.5,) * 3)


def launch(count: int, *arguments: object) -> None:
    """Launch `count` processes of one run as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    processes = [tiny_recipe.start(*arguments, **common, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)]
    for process in processes:
        _, complained = process.communicate(200)
        assert process.returncode == 0, complained
        assert "Warning" not in complained, complained


@pytest.mark.timeout(240)
def test_two_processes_equal_one_by_ddp_and_by_fsdp(colours: Path, tmp_path: Path) -> None:
    """20 steps of 8 samples in fp32, to 1e-6; the checkpoint of two is one process's too.

    AdamW's epsilon keeps it from blowing up the rounding errors that are the whole gradient of the keys' biases.
    """
    content = tiny_recipe.recipe(colours)
    first = content["phases"][0]
    first["optimiser"]["eps"] = 1e-4
    first["loop"] = {"epochs": STEPS / 9, "batch_size": 8, "clip_norm": 1.0, "ema": 0.5, "checkpoint_every": 6}
    content["phases"] = [first | {"name": name, "loop": first["loop"] | {"sharding": name}} for name in ("ddp", "fsdp")]
    two = tiny_recipe.write(content, tmp_path / "two.yaml")
    content["phases"] = [first | {"name": "one"}]
    one = tiny_recipe.write(content, tmp_path / "one.yaml")
    launch(2, two, "--runs", tmp_path)
    assert cli.main([str(one), "--runs", str(tmp_path), "--no-tensorboard"]) == 0

    runs = tmp_path / "colours-0.1"
    expected, weights = read_log(runs / "one"), load_file(runs / "one" / WEIGHTS)
    assert len(expected) == STEPS
    for name in ("ddp", "fsdp"):
        got = read_log(runs / name)
        assert [row["loss"] for row in got] == pytest.approx([row["loss"] for row in expected], rel=1e-6)
        for parameter, value in load_file(runs / name / WEIGHTS).items():
            assert torch.allclose(value, weights[parameter], rtol=1e-6, atol=1e-6), parameter
    assert cli.main([str(two), "--runs", str(tmp_path), "--phase", "ddp", "--no-tensorboard"]) == 0


def test_every_sample_is_used_once_over_all_processes(colours: Path) -> None:
    source = ImageFolderSettings(path=colours).open(SamplePreparation(preprocess=PREPROCESS))
    shares = [EpochBatches(source, BatchShare(12, rank, 3, micro_batch=3), seed=1) for rank in range(3)]
    alone = EpochBatches(source, BatchShare(12), seed=1)
    for epoch in range(2):
        for batches in (*shares, alone):
            batches.epoch = epoch
        parts = [[draw for micro in batches for draw in micro] for batches in shares]
        steps = [[draw for part in parts for draw in part[4 * step : 4 * step + 4]] for step in range(6)]
        assert steps == list(alone)
        assert sorted(draw.sample for step in steps for draw in step) == list(range(72))
    assert [len(batches) for batches in shares] == [12] * 3  # 6 steps of 4 samples, 3 at a time at most
