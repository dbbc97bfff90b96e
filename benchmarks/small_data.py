"""How well little data is learned: `python -m benchmarks.small_data [--seeds 5]`.

Twenty drawings each of circles, squares and triangles train the recipe of docs/training.md for small folders, others judge it, once for
each seed, which draws the images too. `--recipe` names another recipe, such as the one that starts from random weights.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from models import bundle

SHAPES = {"circle": 0, "square": 4, "triangle": 3}
"""Shape → corners."""
SIDE = 160
RECIPE = Path("training/recipes/folder-finetune.yaml")


def shape_image(corners: int, generator: np.random.Generator) -> Image.Image:
    """Draw a dark shape of any place, size and colour, slightly turned, on a light ground, with noise."""
    side = 2 * SIDE
    ground, colour = (tuple(map(int, generator.integers(*span, 3))) for span in ((150, 256), (0, 140)))
    drawn = Image.new("RGB", (side, side), ground)
    pen, radius = ImageDraw.Draw(drawn), generator.uniform(0.2, 0.36) * side
    x, y = generator.uniform(1.05 * radius, side - 1.05 * radius, 2)
    turn = generator.uniform(-0.35, 0.35) + {4: np.pi / 4, 3: -np.pi / 2}.get(corners, 0.0)
    if corners:
        angles = turn + 2 * np.pi * np.arange(corners) / corners
        pen.polygon([(x + radius * np.cos(angle), y + radius * np.sin(angle)) for angle in angles], fill=colour)
    else:
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
    small = np.asarray(drawn.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return Image.fromarray((small + generator.normal(0, 6, small.shape)).clip(0, 255).astype(np.uint8))


def draw(folder: Path, each: int, seed: int) -> Path:
    generator = np.random.default_rng(seed)
    for name, corners in SHAPES.items():
        (folder / name).mkdir(parents=True)
        for number in range(each):
            shape_image(corners, generator).save(folder / name / f"{number}.png")
    return folder


def train(recipe: Path, folder: Path, seed: int, *options: str) -> tuple[str, float]:
    """Train, and return the output and the seconds it took."""
    train_on, judge_by = folder / "train", folder / "val"
    changes = (f"seed={seed}", f"data.path={train_on}", f"release.quality.data.path={judge_by}")
    places = ("--runs", str(folder / "runs"), "--bundles", str(folder / "bundles"))
    started_at = time.monotonic()
    command = [sys.executable, "-m", "training", str(recipe), *changes, *places, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=dict(os.environ))
    return done.stdout, time.monotonic() - started_at


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.small_data", description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=20, help="of each shape (default: %(default)s)")
    options = parser.parse_args()
    right, times = [], []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            draw(folder / "train", options.images, seed)
            draw(folder / "val", options.images, 100 + seed)
            output, answered = train(options.recipe, folder, seed, "--dry-run")
            estimate = 60 * sum(float(minutes) for minutes in re.findall(r"about ([\d.]+) minutes on", output))
            _, seconds = train(options.recipe, folder, seed)
            made = bundle.read(folder / "bundles" / "mine" / "1.0.0").spec
        right.append(float(made.quality["test_accuracy"]["value"]))
        times.append(seconds)
        print(
            f"seed {seed}: {right[-1]:.1%} of {made.quality['images']} right after {seconds:.0f} s; the dry run said {estimate:.0f} s "
            f"after {answered:.0f} s",
            flush=True,
        )
    spread = statistics.stdev(right) if len(right) > 1 else 0.0
    print(f"{options.recipe}: {statistics.mean(right):.1%} ± {spread:.1%} (standard deviation), at most {max(times):.0f} s")


if __name__ == "__main__":
    main()
