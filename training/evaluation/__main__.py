"""`python -m training.evaluation RECIPE`: evaluate a trained network as `release.quality` of its recipe asks for."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from starters.evaluation.inpainting import step_counts
from training import recipe
from training.errors import TrainingError
from training.evaluation import kinds
from training.evaluation.kinds import BySplit, Evaluation
from training.evaluation.measurement import reports
from training.evaluation.settings import InpaintingQuality, Split
from training.options import Options
from training.phases import Workshop


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parse(arguments)
    try:
        _evaluate(given)
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
    parser.add_argument("--runs", type=Path, default=Options.runs, help="where the phases were trained (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Options.cache, help="downloaded and decoded data (default: %(default)s)")
    parser.add_argument("--phase", help="evaluate the network of this phase, not that of the release")
    parser.add_argument("--split", type=Split, choices=list(Split), help="of the held-out data; test is looked at once (default: val)")
    parser.add_argument("--only", default="", help="part of a name: fill holes in these ways alone, such as `Telea` or `100 steps`")
    return parser.parse_intermixed_args(arguments)


def _evaluate(given: argparse.Namespace) -> None:
    plan = recipe.read(given.recipe, tuple(given.changes))
    quality = plan.release.quality if plan.release else None
    if quality is None:
        raise TrainingError("release.quality: the recipe asks for no measurement, so there is nothing to evaluate")
    kind = kinds.KINDS[type(quality)]
    if given.split and not isinstance(kind, BySplit):
        raise TrainingError(f"--split: kind {quality.kind} has no splits to choose from; leave it out")
    if given.only and not isinstance(quality, InpaintingQuality):
        raise TrainingError(f"--only: kind {quality.kind} is evaluated as a whole; leave it out")
    shop = Workshop(given.runs / f"{plan.name}-{plan.version}", given.cache, torch.device("cpu"))
    asked = kinds.evaluation(plan, shop, given.phase)
    if isinstance(kind, BySplit):
        split = given.split or Split.VAL
        kinds.evaluated(asked, kind, split)
        print(f"wrote {asked.file(split)}")
    elif given.only:
        step_counts.run(step_counts.prepare(asked.recipe, asked.network, shop), given.only)
    else:
        _measure(asked)


def _measure(asked: Evaluation) -> None:
    folder, measured = reports(asked.shop), kinds.measured(asked)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {**measured.drawn, "quality.json": json.dumps(measured.quality, indent=1) + "\n"}.items():
        (folder / name).write_text(content, encoding="utf-8")
    print(f"wrote {folder / 'quality.json'}")


if __name__ == "__main__":
    sys.exit(main())
