"""A folder of images in three colours, and a recipe that pre-trains and fine-tunes on them in seconds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from tests.support.forked_program import ForkedProcess

COLOURS = ("blue", "green", "red")
NETWORK = {"image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2}


def draw(folder: Path, count: int, seed: int = 0) -> Path:
    """`count` images of each colour, in a subfolder each."""
    random = np.random.default_rng(seed)
    for channel, name in enumerate(reversed(COLOURS)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 120, (20, 24, 3))
            pixels[:, :, channel] += 130
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


def recipe(data: Path) -> dict[str, Any]:
    return {
        "name": "colours",
        "version": "0.1",
        "license": "CC0-1.0",
        "seed": 3,
        "data": {"kind": "folder", "path": str(data)},
        "augment": {"crop_scale": [0.5, 1.0]},
        "preprocess": {"image_size": 16, "short_side": 16, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        "model": {"architecture": "mae", "config": {**NETWORK, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}},
        "phases": [
            {
                "name": "pretrain",
                "objective": {"kind": "mae"},
                "optimiser": {"lr": 0.002, "betas": [0.9, 0.95]},
                "schedule": {"warmup": 0.5},
                "loop": {"epochs": 2, "batch_size": 8},
            },
            {
                "name": "finetune",
                "start": "pretrain",
                "model": {"architecture": "vit", "config": {**NETWORK, "pool": "mean"}},
                "objective": {"kind": "supervised", "merge": [0, 3]},
                "optimiser": {"lr": 0.01, "layer_decay": 0.9},
                "schedule": {"warmup": 0.5},
                "loop": {"epochs": 6, "batch_size": 8},
            },
        ],
    }


def write(content: dict[str, Any], file: Path) -> Path:
    file.write_text(yaml.safe_dump(content))
    return file


def start(*arguments: object, leads: bool = False, **environment: str) -> ForkedProcess:
    """`python -m training …` in a process of its own, on one thread. leads: a process group of its own."""
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return ForkedProcess("training", *map(str, arguments), "--no-tensorboard", environment=surroundings, captured=True, leads=leads)


def finish(process: ForkedProcess) -> str:
    """Return the output of a process that ended well."""
    printed, complained = process.communicate(200)
    assert process.returncode == 0, complained
    return printed
