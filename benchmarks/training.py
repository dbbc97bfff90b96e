"""Cost of the training loop compared with a bare one, and its waiting for data: `python -m benchmarks.training`.

The same ViT-S masked autoencoder on the same images in memory, by the loop and by the few lines of plain torch that it could be; they take
turns, so that what else the machine does hits both. Waiting is measured on JPEG files that worker processes read.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import machine
from models.bundle_schema import Preprocess
from models.systems.mae.model import MAE, MAEConfig
from training import random_draws
from training.data.image_folder import Folder
from training.data.source import Augment, Preparation, Source
from training.loop import Plan, Report, Run, attention_of, train
from training.objectives.mae import MAESettings
from training.objectives.protocols import Facts
from training.recipe_settings import LoopSettings, OptimiserSettings, ScheduleSettings

RESULTS = Path(__file__).parent / "results"
PREPROCESS = Preprocess(image_size=224, short_side=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclass(frozen=True)
class InMemory:
    """Random images, normalised."""

    pixels: Tensor
    unit: str = "images"
    labels: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    def identity(self) -> Mapping[str, Any]:
        return {"images": len(self.pixels)}

    def sample(self, index: int, draw: int) -> Mapping[str, Tensor]:
        return {"pixels": self.pixels[index]}


def network(width: int, depth: int) -> MAE:
    torch.manual_seed(0)
    return MAE(MAEConfig(width=width, depth=depth, heads=width // 64, decoder_width=256, decoder_depth=4, decoder_heads=8))


def run_loop(source: Source, settings: LoopSettings, width: int, depth: int) -> Report:
    objective = MAESettings().build(network(width, depth), Facts())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(OptimiserSettings(lr=1e-4), ScheduleSettings(), settings, seed=0)
        return train(objective, source, plan, Run(Path(folder) / "run", device, {}, saves=False))


def bare(source: InMemory, settings: LoopSettings, width: int, depth: int) -> float:
    """Images per second of a loop that does nothing but train."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = network(width, depth).to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    steps = round(settings.epochs * (len(source) // settings.batch_size))
    started_at = time.monotonic()
    for step in range(steps):
        chosen = torch.arange(step * settings.batch_size, (step + 1) * settings.batch_size) % len(source)
        pixels = source.pixels[chosen].to(device)
        noise = random_draws.uniform(chosen.to(device), (model.config.patches,), "mask")
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"), attention_of(device):
            loss = model(pixels, noise).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return steps * settings.batch_size / (time.monotonic() - started_at)


def write_jpegs(folder: Path, count: int) -> Path:
    random = np.random.default_rng(0)
    for number in range(count):
        small = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        (folder / str(number % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC).save(folder / str(number % 2) / f"{number}.jpg", quality=90)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="of each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--workers", type=int, default=1, help="processes that read JPEGs")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    options = parser.parse_args()

    count = options.batch_size * options.steps
    memory = InMemory(torch.randn(count, 3, 224, 224))
    settings = LoopSettings(epochs=1, batch_size=options.batch_size, precision=options.precision)
    shape = options.width, options.depth
    warm = settings.model_copy(update={"epochs": 2 / options.steps})
    run_loop(memory, warm, *shape)
    bare(memory, warm, *shape)
    rates = [(run_loop(memory, settings, *shape).rate, bare(memory, settings, *shape)) for _ in range(options.rounds)]
    ratio = statistics.median(loop / plain for loop, plain in rates)
    with tempfile.TemporaryDirectory() as folder:
        files = Folder(path=write_jpegs(Path(folder), count)).open(Preparation(PREPROCESS, augment=Augment()))
        read = run_loop(files, settings.model_copy(update={"workers": options.workers}), *shape)

    table = Table("", "images/s", "", box=None)
    table.add_row("bare loop, images in memory", f"{statistics.median(plain for _, plain in rates):.1f}", "")
    table.add_row("training.loop, images in memory", f"{statistics.median(loop for loop, _ in rates):.1f}", f"{ratio:.1%} of the bare loop")
    table.add_row(f"training.loop, JPEGs by {options.workers} workers", f"{read.rate:.1f}", f"{read.waiting:.1%} of the time waiting")
    console = Console()
    described = machine.describe()
    for line in described.lines():
        console.print(line)
    console.print(table)
    RESULTS.mkdir(exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    jpegs = {"rate": read.rate, "waiting": read.waiting}
    result = {"machine": described.to_json(), "options": vars(options), "rates": rates, "ratio": ratio, "jpegs": jpegs}
    (RESULTS / f"training-{stamp}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
