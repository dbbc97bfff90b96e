"""`opsin reconstruct`: the whole shape of what one image shows, with depth or without, through a running service."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsin.cli.shared import output_files
from opsin.cli.shared.console import print_note
from opsin.cli.shared.errors import CommandError, UsageError
from opsin.cli.shared.job_progress import wait_with_progress
from opsin.cli.shared.options import Model, Timeout, Url

if TYPE_CHECKING:
    from opsin.client import Client
    from opsin.reconstruction import Reconstruction

FORMATS = ("glb", "ply", "npz")
INTRINSICS = ("fx", "fy", "cx", "cy")


def reconstruct(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Image file.", show_default=False)],
    depth: Annotated[
        Path | None, typer.Option(help="16-bit PNG in millimetres, or .npy in metres; with --fov or --intrinsics.", show_default=False)
    ] = None,
    points: Annotated[Path | None, typer.Option(help=".npy float32 (H, W, 3), the point of each pixel.", show_default=False)] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Image of the same size, white on the object. [default: opaque pixels, or all that was seen]", show_default=False
        ),
    ] = None,
    fov: Annotated[float | None, typer.Option(help="Horizontal field of view in degrees.", show_default=False)] = None,
    intrinsics: Annotated[str | None, typer.Option(metavar="FX[,FY[,CX,CY]]", help="In pixels of the image.", show_default=False)] = None,
    depth_scale: Annotated[
        float | None, typer.Option(help="Steps of a 16-bit depth map in a metre. [default: 1000]", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File.glb, .ply or .npz. [default: FILE.glb]", show_default=False)
    ] = None,
    spacing: Annotated[
        float | None, typer.Option(help="Distance between cells, in units. [default: the model's]", show_default=False)
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Probability above which a cell is occupied.", show_default=False)] = None,
    mode: Annotated[str | None, typer.Option(help="adaptive or dense.", show_default=False)] = None,
    surface: Annotated[
        str | None,
        typer.Option(help="joined with what was seen, or the network's alone. [default: joined]", show_default=False),
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG of the points from all sides.", show_default=False)] = None,
    url: Url = None,
    model: Model = None,
    timeout: Timeout = 3600.0,
    as_json: Annotated[bool, typer.Option("--json", help="Say what was done as JSON.")] = False,
) -> None:
    """Reconstruct a shape from an image with --depth or --points, and show how far it has come.

    An image of an object alone is enough where the model tells depth: with --mask, or transparent around the object.

    Ctrl-C ends the work in the service, too.
    """
    from opsin.client import Client
    from opsin.errors import OpsinError

    for path in (file, depth, points, mask):
        if path is not None and not path.is_file():
            raise UsageError(f"{path}: no such file")
    if depth is not None and points is not None:
        raise UsageError("--points: given beside --depth; they say the same")
    written = output or Path(file.with_suffix(".glb").name)
    output_files.check(written, picture)
    output_files.check_suffix(picture, ".png")
    asked: dict[str, Any] = {"spacing": spacing, "threshold": threshold, "mode": mode, "surface": surface}
    options: Any = {**asked, "model": model, "fov": fov, "depth_scale": depth_scale, "format": _format(written), "timeout": timeout}
    options |= _intrinsics(intrinsics)
    began = time.monotonic()
    with Client(url, timeout=timeout) as client:
        try:
            found = wait_with_progress(
                client.reconstruct(file, depth, points=points, mask=mask, wait=False, **options), "Levels", elapsed=True
            )
            seconds = time.monotonic() - began
            output_files.write(written, found.file)
            if picture is not None:
                output_files.write(picture, _turntable(client, found, asked))
        except OpsinError as error:
            raise CommandError(f"{file}: {error}") from error
    if as_json:
        typer.echo(json.dumps(_document(found, written, seconds), ensure_ascii=False))
        return
    units = "" if found.metric else ", in units of the median depth"
    typer.echo(f"{written}  {found.count} points{units}, {found.queries} queries, {seconds:.1f} s")
    if found.scene is not None:
        typer.echo(f"scene {found.scene} can be asked again for a while: /v1/scenes/{found.scene}")
    print_note(f"{found.model}@{found.version}", found.note)


def _format(path: Path) -> str:
    """Raises UsageError."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise UsageError(f"{path}: the file's name must end in .glb, .ply or .npz")
    return kind


def _intrinsics(text: str | None) -> dict[str, float]:
    """Raises UsageError."""
    if text is None:
        return {}
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2, 4):
        raise UsageError(f"--intrinsics {text}: use FX, FX,FY or FX,FY,CX,CY in pixels")
    return dict(zip(INTRINSICS, numbers, strict=False))


def _turntable(client: Client, found: Reconstruction, asked: dict[str, Any]) -> bytes:
    """A turning view of the points. The scene is asked again if the file does not tell how wide they are. Raises OpsinError and Failure."""
    from opsin.image_encoding import png
    from opsin.point_rendering import render_turntable

    if not found.file.startswith(b"PK"):
        if found.scene is None:
            raise CommandError("--picture: the service has no room to keep the scene; write an .npz")
        found = client.scene(found.scene, **{**asked, "format": "npz"})
    return png(render_turntable(found.cloud()))


def _document(found: Reconstruction, written: Path, seconds: float) -> dict[str, Any]:
    from dataclasses import asdict

    told = {name: value for name, value in asdict(found).items() if name != "file"}
    return {**told, "points": told.pop("count"), "file": str(written), "seconds": round(seconds, 3)}
