"""`python -m training.judging`: judge a trained recipe that fills holes, whole or in pieces."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from training import phases, recipe
from training.command import Options
from training.errors import TrainingError
from training.judging import judge, plot, report
from training.phases import Workshop
from training.quality import rounded


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parse(arguments)
    try:
        _judge(given)
    except TrainingError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.judging",
        description="Fill holes of held-out drawings in every way that is compared. What was stopped goes on; `opsin train` uses the rows.",
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("changes", nargs="*", metavar="FIELD=VALUE", help="overrides, such as release.quality.images=8")
    parser.add_argument("--runs", type=Path, default=Options.runs, help="where the phases were trained (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Options.cache, help="downloaded and decoded data (default: %(default)s)")
    parser.add_argument("--only", default="", help="part of a name: fill in these ways alone, such as `Telea` or `100 steps`")
    parser.add_argument("--batch", type=int, default=32, help="drawings at a time (default: %(default)s)")
    return parser.parse_intermixed_args(arguments)


def _judge(given: argparse.Namespace) -> None:
    plan = recipe.read(given.recipe, tuple(given.changes))
    if plan.release is None:
        raise TrainingError("release: the recipe makes no bundle, so there is nothing to judge")
    shop = Workshop(given.runs / f"{plan.name}-{plan.version}", given.cache, torch.device("cpu"))
    network = rounded(phases.trained_network(plan, plan.release.phase or plan.phases[-1].name, (), shop))
    contest = judge.prepare(plan, network, shop)
    results = judge.run(contest, given.only, given.batch)
    if given.only:
        return
    folder = shop.runs / judge.FOLDER
    quality = report.summary(contest, results)
    (folder / "quality.json").write_text(json.dumps(quality, indent=1) + "\n", encoding="utf-8")
    (folder / plot.FILE).write_text(plot.draw(quality), encoding="utf-8")
    print(f"wrote {folder / 'quality.json'} and {folder / plot.FILE}")


if __name__ == "__main__":
    sys.exit(main())
