"""`opsin train`: a recipe becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opsin.cli.shared.errors import UsageError
from opsin.cli.shared.requirements import requires_extra


def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file; training/recipes/… are in the wheel, too.", show_default=False)],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[FIELD=VALUE]...", help="Overrides, such as phases.0.loop.batch_size=8.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Checkpoints, logs and weights.")] = Path("runs"),
    bundles: Annotated[Path, typer.Option(help="Where the bundle goes.")] = Path("bundles"),
    cache: Annotated[Path, typer.Option(help="Downloaded and decoded data.")] = Path(".cache/data"),
    phase: Annotated[str | None, typer.Option(help="Train this phase alone, and write no bundle.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it takes: parameters, memory, FLOPs, samples per second.")] = False,
    tensorboard: Annotated[bool, typer.Option(help="Write TensorBoard's files beside log.jsonl.")] = True,
) -> None:
    """Train a recipe and write its bundle. A run that was killed goes on where its last checkpoint was.

    On several processes: `torchrun --nproc-per-node 8 -m opsin.engine training RECIPE.yaml`.
    """
    with requires_extra("train"):
        from training import command
        from training.errors import TrainingError
        from training.options import Options
    options = Options(recipe, tuple(changes or ()), runs, bundles, cache, phase, dry_run, tensorboard)
    try:
        code = command.run(options)
    except TrainingError as error:
        raise UsageError(str(error)) from error
    if code:
        raise typer.Exit(code)
