"""`opsin export`: a bundle → a checkpoint that the published code can read."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opsin.cli.bundles.labelled_images import load_at_model_size
from opsin.cli.shared import output_files
from opsin.cli.shared.console import format_bytes
from opsin.cli.shared.errors import CommandError, UsageError
from opsin.cli.shared.requirements import requires_extra

if TYPE_CHECKING:
    from models.bundle import BundleSpec
    from models.checkpoints.export_bundle import ExportedCheckpoint
    from models.merge_schedule import MergeSchedule


def export(
    bundle: Annotated[Path, typer.Argument(metavar="DIR/NAME/VERSION", help="The bundle's folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help=".safetensors, or a torch file of any other suffix.")],
    family: Annotated[str | None, typer.Option(help="Layout of this model family. [default: that of the imported checkpoint]")] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write an ONNX graph instead, after comparing it with the model.")] = False,
    rung: Annotated[
        str | None, typer.Option(help="With --onnx: the rung whose merging the graph has, or off. [default: the bundle's default]")
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help="With --onnx: an image to compare graph and model on; repeatable.")] = None,
) -> None:
    """Write a bundle's weights in a published layout: its key names and its container. Imported weights are exported bit for bit.

    `--family flip` writes T5X's folder if FILE has no suffix. `--onnx` exports a ViT with its merging, the denoising step of DiffMAE, or
    the decoder of MCC.
    """
    if onnx:
        if family is not None:
            raise UsageError("--family: an ONNX graph has no published layout; leave out --family or --onnx")
        export_graph(bundle, output, rung, image or [])
        return
    if rung is not None or image:
        raise UsageError("--rung and --image: only valid with --onnx")
    with requires_extra("server"):
        from models.bundle import BundleError, read
        from models.checkpoints.checkpoint_file import CheckpointError
        from models.checkpoints.export_bundle import export_bundle
    try:
        written = export_bundle(read(bundle), output, family)
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    except (BundleError, OSError) as error:
        raise CommandError(f"export: {error}") from error
    typer.echo(f"family   {written.family}")
    typer.echo(f"tensors  {written.tensors}")
    if written.lacks:
        typer.echo(f"without  {written.lacks}")
    for file in (output, *written.copies.values()):
        typer.echo(f"written  {file}")
    typer.echo(f"back     {_import_arguments(read(bundle).spec, bundle, output, written)} -o …")


def _import_arguments(spec: BundleSpec, bundle: Path, output: Path, written: ExportedCheckpoint) -> str:
    """Return the command that imports the exported file as an equal bundle."""
    arguments = ["opsin", "import", str(output), "--family", written.family]
    arguments += [argument for name, value in written.settings.items() for argument in ("--set", f"{name}={json.dumps(value)}")]
    arguments += ["--labels", str(bundle / "bundle.json")] if spec.labels else []
    if spec.text is not None:
        arguments += ["--tokenizer", str(written.copies["tokenizer.json"]), "--templates", str(bundle / "bundle.json")]
    return shlex.join([*arguments, "--license", spec.license])


def export_graph(folder: Path, output: Path, rung: str | None, images: list[Path]) -> None:
    with requires_extra("export"):
        from models.bundle import BundleError, read
        from models.systems.onnx import export as onnx_export
    output_files.check_writable(output)
    try:
        bundle = read(folder)
        onnx_export.check_exportable(bundle)
        spec = bundle.spec
        schedule = None if rung is None else _schedule(spec, rung)
        pixels = load_at_model_size(images, spec, "--image")
        written = onnx_export.export(bundle, output, schedule=schedule, pixels=pixels)
    except onnx_export.ExportError as error:
        raise UsageError(str(error)) from error
    except (BundleError, OSError) as error:
        raise CommandError(f"export: {error}") from error
    for name, shape in written.inputs.items():
        typer.echo(f"input    {name} ({', '.join(map(str, shape))})")
    typer.echo(f"output   {', '.join(written.outputs)}")
    typer.echo(f"nodes    {written.nodes}, {format_bytes(written.bytes)}")
    typer.echo(f"differs  {written.difference:.1e} at most from the model, relative to outputs of size 1 or more")
    typer.echo(f"written  {output}")


def _schedule(spec: BundleSpec, rung: str) -> MergeSchedule:
    from models.merge_schedule import MergeSchedule

    named_rung = spec.rung(rung)
    if rung != "off" and named_rung is None:
        raise UsageError(
            f"--rung {rung}: {spec.id} has no such rung; available: {', '.join(['off', *(each.name for each in spec.ladder)])}"
        )
    return MergeSchedule.off() if named_rung is None else named_rung.merge
