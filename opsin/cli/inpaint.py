"""`opsin inpaint`: fill holes in an image through a running service."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsin.cli.shared import output_files
from opsin.cli.shared.console import make_console, print_note
from opsin.cli.shared.errors import CommandError, UsageError
from opsin.cli.shared.job_progress import wait_with_progress
from opsin.cli.shared.options import Model, Timeout, Url
from opsin.cli.shared.terminal_image import can_draw, draw

if TYPE_CHECKING:
    from rich.text import Text

    from opsin.inpainting import Inpainting


def inpaint(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Image file.", show_default=False)],
    mask: Annotated[
        str | None,
        typer.Option(
            help="Image of the same size, white where it is to be filled, or box:X,Y,W,H, center[:RATIO], random:RATIO. "
            "[default: the image's own transparent pixels]",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="PNG file. [default: FILE-filled.png]", show_default=False)] = None,
    url: Url = None,
    model: Model = None,
    method: Annotated[str | None, typer.Option(help="auto, network, exemplar or network-exemplar.", show_default=False)] = None,
    preset: Annotated[str | None, typer.Option(help="draft, fast, standard or full.", show_default=False)] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.", show_default=False)] = None,
    sampler: Annotated[str | None, typer.Option(help="ddim, ancestral or one-step.", show_default=False)] = None,
    eta: Annotated[float | None, typer.Option(help="Noise that ddim adds, 0 to 1.", show_default=False)] = None,
    spacing: Annotated[str | None, typer.Option(help="uniform or logsnr.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="Of the first sample.", show_default=False)] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Share of the drawn noise, 0 to 1: calmer fillings. [default: the bundle's]", show_default=False)
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Fillings, in files -1, -2, …; at temperature 0 they are the same.", show_default=False)
    ] = None,
    grow: Annotated[int | None, typer.Option(help="Pixels by which the mask is widened.", show_default=False)] = None,
    feather: Annotated[int | None, typer.Option(help="Pixels of soft edge inside the mask.", show_default=False)] = None,
    blend: Annotated[str | None, typer.Option(help="How the filling meets the image: membrane or none.", show_default=False)] = None,
    inject_known: Annotated[
        bool | None, typer.Option(help="Let known pixels of partly masked patches guide the others.", show_default=False)
    ] = None,
    size: Annotated[str | None, typer.Option(help="What the network sees: fit, crop or tile.", show_default=False)] = None,
    deterministic: Annotated[bool | None, typer.Option(help="The same bytes each time on one machine.", show_default=False)] = None,
    timeout: Timeout = 3600.0,
    as_json: Annotated[bool, typer.Option("--json", help="Say what was done as JSON.")] = False,
) -> None:
    """Fill a hole in an image with a running service, and show how far it has come.

    Ctrl-C ends the work in the service, too.
    """
    from opsin.client import Client
    from opsin.errors import OpsinError

    if not file.is_file():
        raise UsageError(f"{file}: no such file")
    written = output or Path(f"{file.stem}-filled.png")
    output_files.check(*_files(written, min(samples or 1, 2)))  # in one folder, however many they are
    output_files.check_suffix(written, ".png")
    chosen = {"model": model, "preset": preset, "steps": steps, "sampler": sampler, "eta": eta, "spacing": spacing, "seed": seed}
    chosen |= {"temperature": temperature, "samples": samples, "grow": grow, "feather": feather, "inject_known": inject_known, "size": size}
    options: Any = {**chosen, "method": method, "blend": blend, "deterministic": deterministic, "timeout": timeout}
    with Client(url) as client:
        try:
            job = client.inpaint(file, _mask(mask), wait=False, **options)
            filled = wait_with_progress(job, "Filling", preview=_preview if can_draw(make_console(errors=True)) else None)
        except OpsinError as error:
            raise CommandError(f"{file}: {error}") from error
    files = _files(written, len(filled.samples))
    for path, sample in zip(files, filled.samples, strict=True):
        output_files.write(path, sample.png)
    if as_json:
        typer.echo(json.dumps(_document(filled, files), ensure_ascii=False))
        return
    for path, sample in zip(files, filled.samples, strict=True):
        typer.echo(f"{path}  seed {sample.seed}")
    how = "with patches from around the hole" if filled.method == "exemplar" else f"in {filled.steps} steps of {filled.sampler}"
    refined = ", then with patches from around the hole" if filled.method == "network-exemplar" else ""
    typer.echo(f"{filled.masked_pixels} of {filled.width * filled.height} pixels filled {how}{refined}")
    if filled.masked_pixels == 0:
        typer.echo(f"opsin: nothing was filled: --mask {mask} marks no pixel", err=True)
    print_note(f"{filled.model}@{filled.version}", filled.note)


def _mask(text: str | None) -> Path | str | None:
    """A file, or words for the service. Raises UsageError."""
    from opsin.inpainting import MASK_EXPRESSIONS

    if text is None or (text.startswith(MASK_EXPRESSIONS) and not Path(text).exists()):
        return text
    if not Path(text).is_file():
        raise UsageError(f"--mask {text}: no such file; or use box:X,Y,W,H, center, center:RATIO or random:RATIO")
    return Path(text)


def _preview(told: Mapping[str, Any]) -> Text:
    """The image of a preview, which comes in base64, drawn in characters."""
    from PIL import Image

    with Image.open(BytesIO(base64.b64decode(told["image"]))) as opened:
        return draw(opened)


def _files(output: Path, samples: int) -> list[Path]:
    return [output.with_stem(f"{output.stem}-{number}") for number in range(1, samples + 1)] if samples > 1 else [output]


def _document(filled: Inpainting, files: list[Path]) -> dict[str, Any]:
    from dataclasses import asdict

    results = [{"file": str(path), "seed": sample.seed} for path, sample in zip(files, filled.samples, strict=True)]
    told = {name: value for name, value in asdict(filled).items() if name != "samples"}
    return {**told, "results": results}
