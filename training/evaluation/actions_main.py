"""`python -m training.evaluation RECIPE`: how well a trained network recognises actions of the validation split, for choices."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from training import phases, recipe
from training.command import Options
from training.errors import TrainingError
from training.evaluation import quality
from training.evaluation.actions.measure import LART_NAME, validation
from training.evaluation.settings import ActionsQuality
from training.phases import Workshop


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.evaluation", description="Judge a trained recipe of actions for choices.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("changes", nargs="*", metavar="FIELD=VALUE", help="overrides, such as release.quality.cameras=6")
    parser.add_argument("--runs", type=Path, default=Options.runs, help="where the phases were trained (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Options.cache, help="downloaded data (default: %(default)s)")
    given = parser.parse_intermixed_args(arguments)
    try:
        print("\n".join(_judged(recipe.read(given.recipe, tuple(given.changes)), given.runs, given.cache)))
    except TrainingError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _judged(plan: recipe.Recipe, runs: Path, cache: Path) -> Iterator[str]:
    if plan.release is None or not isinstance(plan.release.quality, ActionsQuality):
        raise TrainingError("release.quality: the recipe makes no bundle of actions, so there is nothing to judge")
    shop = Workshop(runs / f"{plan.name}-{plan.version}", cache, torch.device("cpu"))
    network = phases.trained_network(plan, plan.release.phase or plan.phases[-1].name, (), shop)
    source, calibrated, temperatures = quality.calibrated_actions(plan, plan.release.quality, network, shop)
    yield "temperatures: " + ", ".join(f"{label} {by:.2f}" for label, by in zip(source.labels, temperatures, strict=True))
    found = validation(source, plan.release.quality, calibrated, cache, plan.seed)
    for kind in ("recorded", "authored"):
        yield from _lines(kind, found[kind])
        none = found["none"][kind]
        yield f"{kind}: no label above 0.5 in {100 * (none['quiet'] or 0):.1f} % of {none['moments']} moments without an action"


def _lines(kind: str, table: Mapping[str, Any]) -> Iterator[str]:
    for row in table["classes"]:
        right, precision = row["accuracy"][LART_NAME], row["average_precision"][LART_NAME]
        yield f"{kind}: {row['label']}, {row['moments']} moments, {100 * right:.0f} % right, average precision {precision:.2f}"
    yield f"{kind}: {100 * table['accuracy'][LART_NAME]['value']:.1f} % right, mean average precision {table['map'][LART_NAME]:.3f}"


if __name__ == "__main__":
    sys.exit(main())
