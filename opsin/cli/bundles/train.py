"""`opsin train`: train a recipe and write its bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opsin.cli.shared.errors import UsageError
from opsin.cli.shared.requirements import requires_extra


def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file of your own, or training/recipes/NAME.yaml, found in any folder.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FIELD=VALUE]...", help="Values that override the recipe's, such as phases.0.loop.batch_size=8."),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder for checkpoints, logs and weights.")] = Path("runs"),
    bundles: Annotated[Path, typer.Option(help="Folder for the bundle.")] = Path("bundles"),
    cache: Annotated[Path, typer.Option(help="Folder for downloaded and decoded data.")] = Path(".cache/data"),
    phase: Annotated[str | None, typer.Option(help="Train only this phase, and write no bundle.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the cost: parameters, memory, FLOPs, samples per second.")] = False,
    tensorboard: Annotated[bool, typer.Option(help="Also write TensorBoard's files, next to log.jsonl.")] = True,
) -> None:
    """Train a recipe and write its bundle. An interrupted run resumes from its last checkpoint.

    On several processes: `torchrun --nproc-per-node 8 -m opsin.engine training RECIPE.yaml`.
    """
    with requires_extra("train"):
        from training import cli
        from training.errors import TrainingError
        from training.options import TrainOptions
    options = TrainOptions(recipe, tuple(changes or ()), runs, bundles, cache, phase, dry_run, tensorboard)
    try:
        code = cli.run(options)
    except TrainingError as error:
        raise UsageError(str(error)) from error
    if code:
        raise typer.Exit(code)
