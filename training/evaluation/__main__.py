"""`python -m training.evaluation RECIPE`: evaluate a trained network as `release.quality` of its recipe asks for."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from training import recipe
from training.errors import TrainingError
from training.evaluation.report import Measurement, reports
from training.evaluation.settings import DataSplit
from training.evaluation.trained_classifier import SplitQuality, load_trained
from training.options import TrainOptions
from training.phase_runner import RunContext
from training.shipped_files import warn_if_moved


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = _parse(arguments)
    try:
        _evaluate(parsed)
    except TrainingError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluation",
        description="Evaluate a trained network as `release.quality` of its recipe asks for. An evaluation that was stopped goes on, and"
        " `opsin train` reads what was scored before.",
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("changes", nargs="*", metavar="FIELD=VALUE", help="overrides, such as release.quality.images=8")
    parser.add_argument("--runs", type=Path, default=TrainOptions.runs, help="where the phases were trained (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=TrainOptions.cache, help="downloaded and decoded data (default: %(default)s)")
    parser.add_argument("--phase", help="evaluate the network of this phase, not that of the release")
    parser.add_argument(
        "--split", type=DataSplit, choices=list(DataSplit), help="of the held-out data; test is looked at once (default: val)"
    )
    return parser.parse_intermixed_args(arguments)


def _evaluate(parsed: argparse.Namespace) -> None:
    plan = recipe.read(parsed.recipe, tuple(parsed.changes))
    warn_if_moved(parsed.recipe)
    quality = plan.release.quality if plan.release else None
    if quality is None:
        raise TrainingError("release.quality: the recipe asks for no measurement, so there is nothing to evaluate")
    if parsed.split and not isinstance(quality, SplitQuality):
        raise TrainingError(f"--split: kind {quality.kind} has no splits to choose from; leave it out")
    context = RunContext(parsed.runs / f"{plan.name}-{plan.version}", parsed.cache, torch.device("cpu"))
    evaluated = load_trained(plan, context, parsed.phase)
    if isinstance(quality, SplitQuality):
        split = parsed.split or DataSplit.VAL
        quality.report(evaluated, split)
        print(f"wrote {quality.file(evaluated, split)}")
    else:
        _write(quality.measure(evaluated), reports(context))


def _write(found: Measurement, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "quality.json").write_text(json.dumps(found.quality, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {folder / 'quality.json'}")


if __name__ == "__main__":
    sys.exit(main())
