"""`opsin inpaint`: fill holes in an image."""

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
from opsin.cli.shared.errors import UsageError
from opsin.cli.shared.options import Model, Timeout, Url
from opsin.cli.shared.service_calls import open_client, wait_with_progress

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import Console
    from rich.text import Text

    from opsin.inpainting import Inpainting
DEFAULT_COLUMNS = 48
UPPER_HALF_BLOCK = "▀"


def inpaint(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Image file.")],
    mask: Annotated[
        str | None,
        typer.Option(
            help="Image of the same size, white in the holes, or box:X,Y,W,H, center[:RATIO], random:RATIO. "
            "[default: the image's transparent pixels]"
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="PNG file. [default: FILE-filled.png]")] = None,
    url: Url = None,
    model: Model = None,
    method: Annotated[str | None, typer.Option(help="auto, network, exemplar or network-exemplar.")] = None,
    preset: Annotated[str | None, typer.Option(help="draft, fast, standard or full.")] = None,
    steps: Annotated[int | None, typer.Option(help="Number of denoising steps.")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddim, ancestral or one-step.")] = None,
    eta: Annotated[float | None, typer.Option(help="Noise added by ddim, 0 to 1.")] = None,
    spacing: Annotated[str | None, typer.Option(help="uniform or logsnr.")] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed of the first sample.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Share of the sampled noise, 0 to 1; lower is smoother. [default: the bundle's]")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Number of fillings, in files -1, -2, …; at temperature 0 they are equal.")] = None,
    grow: Annotated[int | None, typer.Option(help="Number of pixels by which to widen the mask.")] = None,
    feather: Annotated[int | None, typer.Option(help="Width of the soft edge inside the mask, in pixels.")] = None,
    blend: Annotated[str | None, typer.Option(help="Blending of the filling into the image: membrane or none.")] = None,
    inject_known: Annotated[bool | None, typer.Option(help="Guide the filling by the known pixels of partly masked patches.")] = None,
    size: Annotated[str | None, typer.Option(help="Part of the image that the network sees: fit, crop or tile.")] = None,
    deterministic: Annotated[bool | None, typer.Option(help="Produce equal bytes each time on one machine.")] = None,
    timeout: Timeout = 3600.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
) -> None:
    """Fill holes in an image (inpainting). Shows a progress bar.

    Ctrl-C also cancels the work in the service.
    """
    if not file.is_file():
        raise UsageError(f"{file}: no such file")
    written = output or Path(f"{file.stem}-filled.png")
    output_files.check_writable(*_files(written, min(samples or 1, 2)))  # all samples go into one folder
    output_files.check_suffix(written, ".png")
    sampling_options = {"model": model, "preset": preset, "steps": steps, "sampler": sampler, "eta": eta, "spacing": spacing, "seed": seed}
    sampling_options |= {
        "temperature": temperature,
        "samples": samples,
        "grow": grow,
        "feather": feather,
        "inject_known": inject_known,
        "size": size,
    }
    options: Any = {**sampling_options, "method": method, "blend": blend, "deterministic": deterministic, "timeout": timeout}
    with open_client(url, file) as client:
        job = client.inpaint(file, _mask(mask), wait=False, **options)
        filled = wait_with_progress(job, "Filling", preview=_preview if can_draw(make_console(errors=True)) else None)
    files = _files(written, len(filled.samples))
    for path, sample in zip(files, filled.samples, strict=True):
        output_files.write(path, sample.png)
    if as_json:
        typer.echo(json.dumps(_document(filled, files), ensure_ascii=False))
        return
    for path, sample in zip(files, filled.samples, strict=True):
        typer.echo(f"{path}  seed {sample.seed}")
    method_text = "with patches from around the hole" if filled.method == "exemplar" else f"in {filled.steps} steps of {filled.sampler}"
    refined = ", then with patches from around the hole" if filled.method == "network-exemplar" else ""
    typer.echo(f"{filled.masked_pixels} of {filled.width * filled.height} pixels filled {method_text}{refined}")
    if filled.masked_pixels == 0:
        typer.echo(f"opsin: nothing was filled: --mask {mask} marks no pixel", err=True)
    print_note(f"{filled.model}@{filled.version}", filled.note)


def _mask(text: str | None) -> Path | str | None:
    """Return the path of a mask, or an expression for the service. Raises UsageError."""
    from opsin.inpainting import MASK_EXPRESSIONS

    if text is None or (text.startswith(MASK_EXPRESSIONS) and not Path(text).exists()):
        return text
    if not Path(text).is_file():
        raise UsageError(f"--mask {text}: no such file; or use box:X,Y,W,H, center, center:RATIO or random:RATIO")
    return Path(text)


def _preview(data: Mapping[str, Any]) -> Text:
    """Draw the image of a preview, sent in base64, in characters."""
    from PIL import Image

    with Image.open(BytesIO(base64.b64decode(data["image"]))) as opened:
        return draw(opened)


def _files(output: Path, samples: int) -> list[Path]:
    return [output.with_stem(f"{output.stem}-{number}") for number in range(1, samples + 1)] if samples > 1 else [output]


def _document(filled: Inpainting, files: list[Path]) -> dict[str, Any]:
    from dataclasses import asdict

    results = [{"file": str(path), "seed": sample.seed} for path, sample in zip(files, filled.samples, strict=True)]
    fields = {name: value for name, value in asdict(filled).items() if name != "samples"}
    return {**fields, "results": results}


def can_draw(console: Console) -> bool:
    """Return whether this terminal has enough colours, and Pillow is installed."""
    if not console.is_terminal or console.color_system not in ("truecolor", "256"):
        return False
    try:
        import PIL  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def draw(image: Image, columns: int = DEFAULT_COLUMNS) -> Text:
    """Draw an image, `columns` characters wide and, if it is square, half as many lines high."""
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    lines = max(1, round(columns * image.height / image.width / 2))
    pixels = image.convert("RGB").resize((columns, 2 * lines))
    text = Text()
    for line in range(lines):
        for column in range(columns):
            upper, lower = (Color.from_rgb(*pixels.getpixel((column, 2 * line + half))) for half in (0, 1))  # type: ignore[misc]
            text.append(UPPER_HALF_BLOCK, Style(color=upper, bgcolor=lower))
        text.append("\n")
    return text
