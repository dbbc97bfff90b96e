"""`opsin reconstruct`: reconstruct the whole shape of an object or scene from one image, with depth or without."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsin.cli.shared import output_files
from opsin.cli.shared.console import print_note
from opsin.cli.shared.errors import CommandError, UsageError
from opsin.cli.shared.options import Model, Timeout, Url
from opsin.cli.shared.service_calls import open_client, wait_with_progress

if TYPE_CHECKING:
    from opsin.client import Client
    from opsin.reconstruction import Reconstruction

FORMATS = ("glb", "ply", "npz")
INTRINSICS = ("fx", "fy", "cx", "cy")


def reconstruct(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Image file.")],
    depth: Annotated[Path | None, typer.Option(help="16-bit PNG in millimetres, or .npy in metres; with --fov or --intrinsics.")] = None,
    points: Annotated[Path | None, typer.Option(help="Point of each pixel: .npy float32 (H, W, 3).")] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Image of the same size, white on the object. [default: opaque pixels, or all pixels with depth]")
    ] = None,
    fov: Annotated[float | None, typer.Option(help="Horizontal field of view in degrees.")] = None,
    intrinsics: Annotated[str | None, typer.Option(metavar="FX[,FY[,CX,CY]]", help="Camera intrinsics in pixels of the image.")] = None,
    depth_scale: Annotated[float | None, typer.Option(help="Steps of a 16-bit depth map per metre. [default: 1000]")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File.glb, .ply or .npz. [default: FILE.glb]")] = None,
    spacing: Annotated[float | None, typer.Option(help="Distance between cells, in the model's units. [default: the model's]")] = None,
    threshold: Annotated[float | None, typer.Option(help="Probability above which a cell is occupied.")] = None,
    mode: Annotated[str | None, typer.Option(help="adaptive or dense.")] = None,
    surface: Annotated[
        str | None, typer.Option(help="joined: seen and predicted points; network: predicted ones only. [default: joined]")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG file for a view of the points from all sides.")] = None,
    url: Url = None,
    model: Model = None,
    timeout: Timeout = 3600.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
) -> None:
    """Reconstruct a shape from an image. Shows a progress bar.

    If the model estimates depth, an image of an object is enough, with --mask or transparent around the object. Otherwise
    --depth or --points is needed.

    Ctrl-C also cancels the work in the service.
    """
    for path in (file, depth, points, mask):
        if path is not None and not path.is_file():
            raise UsageError(f"{path}: no such file")
    if depth is not None and points is not None:
        raise UsageError("--points: cannot be combined with --depth")
    written = output or Path(file.with_suffix(".glb").name)
    output_files.check_writable(written, picture)
    output_files.check_suffix(picture, ".png")
    scene_options: dict[str, Any] = {"spacing": spacing, "threshold": threshold, "mode": mode, "surface": surface}
    options: Any = {**scene_options, "model": model, "fov": fov, "depth_scale": depth_scale, "format": _format(written), "timeout": timeout}
    options |= _intrinsics(intrinsics)
    started_at = time.monotonic()
    with open_client(url, file, timeout=timeout) as client:
        result = wait_with_progress(
            client.reconstruct(file, depth, points=points, mask=mask, wait=False, **options), "Levels", elapsed=True
        )
        seconds = time.monotonic() - started_at
        output_files.write(written, result.file)
        if picture is not None:
            output_files.write(picture, _turntable(client, result, scene_options))
    if as_json:
        typer.echo(json.dumps(_document(result, written, seconds), ensure_ascii=False))
        return
    units = "" if result.metric else ", in units of the median depth"
    typer.echo(f"{written}  {result.count} points{units}, {result.queries} queries, {seconds:.1f} s")
    if result.scene is not None:
        typer.echo(f"scene {result.scene} can be queried again for a while: /v1/scenes/{result.scene}")
    print_note(f"{result.model}@{result.version}", result.note)


def _format(path: Path) -> str:
    """Return the format of a file by its suffix. Raises UsageError."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise UsageError(f"{path}: the file's name must end in .glb, .ply or .npz")
    return kind


def _intrinsics(text: str | None) -> dict[str, float]:
    """Parse --intrinsics. Raises UsageError."""
    if text is None:
        return {}
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2, 4):
        raise UsageError(f"--intrinsics {text}: use FX, FX,FY or FX,FY,CX,CY in pixels")
    return dict(zip(INTRINSICS, numbers, strict=False))


def _turntable(client: Client, result: Reconstruction, scene_options: dict[str, Any]) -> bytes:
    """Render the points from all sides. The scene is queried again if the file lacks the points' widths.

    Raises OpsinError and CommandError.
    """
    from opsin.image_encoding import png
    from opsin.point_rendering import render_turntable

    if not result.file.startswith(b"PK"):
        if result.scene is None:
            raise CommandError("--picture: the service cannot store the scene; use an .npz output instead")
        result = client.scene(result.scene, **{**scene_options, "format": "npz"})
    return png(render_turntable(result.cloud()))


def _document(result: Reconstruction, written: Path, seconds: float) -> dict[str, Any]:
    from dataclasses import asdict

    fields = {name: value for name, value in asdict(result).items() if name != "file"}
    return {**fields, "points": fields.pop("count"), "file": str(written), "seconds": round(seconds, 3)}
