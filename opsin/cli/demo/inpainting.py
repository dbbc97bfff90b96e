"""The part of `opsin demo` on inpainting: held-out drawings before and after, in one image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from opsin.cli.shared.console import make_table
from opsin.engine import FOLDER

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import Console

    from opsin.client import Client
    from opsin.inpainting import Inpainting
    from opsin.results import Model

DRAWINGS_FOLDER = FOLDER / "docs" / "pictures" / "drawings"
MASK_SUFFIX = "-mask"
"""Suffix of the name of a drawing's mask, which is white in the hole."""
METHODS: tuple[Literal["network", "auto"], ...] = ("network", "auto")
"""The network alone, and the service's default."""
SCALE = 3
GAP_PIXELS = 8
"""Gap between two images of the sheet."""
HOLE_COLOUR = (255, 0, 255)


def show_inpainting(client: Client, model: Model, output: Path, console: Console) -> None:
    """Fill the holes of each drawing, print a table, and write the drawings, holes and fillings to `output`."""
    from rich.progress import Progress

    files = sorted(file for file in DRAWINGS_FOLDER.glob("*.png") if not file.stem.endswith(MASK_SUFFIX))
    table = make_table("Drawing", "Hole", "Method", "Total", "Filled", right=("Hole", "Total"))
    rows: list[list[Image]] = []
    with Progress(console=console, refresh_per_second=2, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("Filling", total=len(files))
        for file in files:
            mask = file.with_stem(file.stem + MASK_SUFFIX)
            fillings = [client.inpaint(file, mask, model=model.id, method=method, seed=0) for method in METHODS]
            written = output / f"{file.stem}-filled.png"
            last = fillings[-1]
            last.save(written)
            share = last.masked_pixels / (last.width * last.height)
            table.add_row(file.name, f"{share:.0%}", last.method, f"{last.timing.total_ms:.0f} ms", str(written))
            rows.append(_images_of_drawing(file, mask, fillings))
            progress.advance(task)
    _compose_sheet(rows).save(output / "inpainting.png")
    console.print(f"\nHoles of drawings that it was not trained on, filled by {model.id}")
    console.print(table)
    console.print(f"Drawing, hole, filling by the network alone, and by default, from top to bottom: {output / 'inpainting.png'}")


def _images_of_drawing(file: Path, mask: Path, fillings: list[Inpainting]) -> list[Image]:
    """Return the drawing, the drawing with its hole, and the fillings."""
    from PIL import Image

    drawing = Image.open(file).convert("RGB")
    holed = drawing.copy()
    holed.paste(HOLE_COLOUR, mask=Image.open(mask).convert("L"))
    return [drawing, holed, *(Image.fromarray(filling.image) for filling in fillings)]


def _compose_sheet(rows: list[list[Image]]) -> Image:
    """Compose an image with a column for each drawing, and its enlarged versions below each other."""
    from PIL import Image

    side = SCALE * max(image.width for row in rows for image in row)
    sheet = Image.new(
        "RGB", (len(rows) * (side + GAP_PIXELS) - GAP_PIXELS, max(map(len, rows)) * (side + GAP_PIXELS) - GAP_PIXELS), "white"
    )
    for column, images in enumerate(rows):
        for line, image in enumerate(images):
            enlarged = image.resize((SCALE * image.width, SCALE * image.height), Image.Resampling.BICUBIC)
            sheet.paste(enlarged, (column * (side + GAP_PIXELS), line * (side + GAP_PIXELS)))
    return sheet
