"""`opsin export`: a bundle → a checkpoint that the published code reads."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from opsin.cli.engine import lacks, require_engine
from opsin.cli.exits import Failure, Misuse


def export(
    bundle: Annotated[Path, typer.Argument(metavar="DIR/NAME/VERSION", help="The bundle's folder.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help=".safetensors, or a torch file of any other suffix.", show_default=False),
    ],
    family: Annotated[str | None, typer.Option(help="Whose layout. [default: the one it was imported from]", show_default=False)] = None,
) -> None:
    """Write a bundle's weights in a published layout: its key names and its container. What import brought in comes out bit for bit.

    `--family flip` writes T5X's folder if FILE has no suffix.
    """
    require_engine("export")
    try:
        from models.bundle import BundleError, read
        from models.published.container import CheckpointError
        from models.published.exporting import export_bundle
    except ModuleNotFoundError as error:
        raise lacks(error) from error
    try:
        written = export_bundle(read(bundle), output, family)
    except CheckpointError as error:
        raise Misuse(str(error)) from error
    except (BundleError, OSError) as error:
        raise Failure(f"export: {error}") from error
    typer.echo(f"family   {written.family}")
    typer.echo(f"tensors  {written.tensors}")
    if written.lacks:
        typer.echo(f"without  {written.lacks}")
    typer.echo(f"written  {output}")
    settings = " ".join(f"--set {shlex.quote(f'{name}={json.dumps(value)}')}" for name, value in written.settings.items())
    typer.echo(f"back     opsin import {shlex.quote(str(output))} --family {written.family} {settings}".rstrip() + " -o …")
