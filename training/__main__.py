"""`python -m training RECIPE.yaml`: make a bundle. Run it again after a kill and it goes on where it was."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from models.vit.model import ViT
from training import measure, phases, recipe, release
from training.data import flags
from training.data.flags import Corpus
from training.data.packages import DataError
from training.loop import TrainingError
from training.recipe import Recipe, RecipeError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training", description="Make a bundle from a recipe. A run that was killed goes on.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="checkpoints (default: %(default)s)")
    parser.add_argument("--bundles", type=Path, default=Path("bundles"), help="where the bundle goes (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Path(".cache/data"), help="downloaded and decoded data (default: %(default)s)")
    parser.add_argument("--only", choices=["pretrain", "scratch"], help="train one of the two phases that need no other, then stop")
    options = parser.parse_args()
    try:
        plan = recipe.read(options.recipe)
        make(plan, options.recipe, options.runs / f"{plan.name}-{plan.version}", options.bundles, options.cache, options.only)
    except (RecipeError, DataError, TrainingError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def make(plan: Recipe, file: Path, folder: Path, bundles: Path, cache: Path, only: str | None) -> None:
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - plan.workers))
    data = flags.build(plan.data, cache)
    if only == "scratch":
        _scratch(plan, data, folder)
        return
    pretrained = phases.pretrain(plan, data, folder / "pretrain").state_dict()
    if only == "pretrain":
        return
    trained = phases.finetune(plan, data, folder / "finetune", pretrained)
    short = release.rounded(phases.finetune(plan, data, folder / "short", pretrained, plan.comparison_epochs))
    scratch = release.rounded(_scratch(plan, data, folder))
    temperature = measure.temperature(plan, data, trained.eval())
    model = release.rounded(release.calibrated(trained, temperature))
    report = measure.measure(plan, data, model, short, scratch)
    written = release.write(plan, file, data, model, temperature, report, bundles)
    print((written.path / "README.md").read_text(encoding="utf-8"))


def _scratch(plan: Recipe, data: Corpus, folder: Path) -> ViT:
    return phases.finetune(plan, data, folder / "scratch", phases.untrained(plan).state_dict(), plan.comparison_epochs)


if __name__ == "__main__":
    sys.exit(main())
