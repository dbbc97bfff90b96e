"""The part of `opsin demo` that fills holes: held-out drawings, before and after, in one picture."""

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

DRAWINGS = FOLDER / "docs" / "pictures" / "drawings"
MASK = "-mask"
"""End of the name of a drawing's mask, which is white where the drawing is to be filled."""
METHODS: tuple[Literal["network", "auto"], ...] = ("network", "auto")
"""The network alone, and what is usual."""
ENLARGED = 3
GAP = 8
"""Pixels between two images of the sheet."""
HOLE = (255, 0, 255)


def show_inpainting(client: Client, output: Path, console: Console) -> None:
    """Fill the holes of each drawing, print a table, and write the drawings, holes and fillings to `output`."""
    from rich.progress import Progress

    files = sorted(file for file in DRAWINGS.glob("*.png") if not file.stem.endswith(MASK))
    model = next(model for model in client.models() if model.task == "inpaint")
    table = make_table("Drawing", "Hole", "Method", "Total", "Filled", right=("Hole", "Total"))
    rows: list[list[Image]] = []
    with Progress(console=console, refresh_per_second=2, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("Filling", total=len(files))
        for file in files:
            mask = file.with_stem(file.stem + MASK)
            fillings = [client.inpaint(file, mask, model=model.id, method=method, seed=0) for method in METHODS]
            written = output / f"{file.stem}-filled.png"
            last = fillings[-1]
            last.save(written)
            share = last.masked_pixels / (last.width * last.height)
            table.add_row(file.name, f"{share:.0%}", last.method, f"{last.timing.total_ms:.0f} ms", str(written))
            rows.append(_row(file, mask, fillings))
            progress.advance(task)
    _sheet(rows).save(output / "inpainting.png")
    console.print(f"\nWhat {model.id} puts into holes of drawings that it has not seen")
    console.print(table)
    console.print(f"Drawing, hole, what the network makes of it, and what is served, one below the other: {output / 'inpainting.png'}")


def _row(file: Path, mask: Path, fillings: list[Inpainting]) -> list[Image]:
    """The drawing, its hole, the fillings."""
    from PIL import Image

    drawing = Image.open(file).convert("RGB")
    holed = drawing.copy()
    holed.paste(HOLE, mask=Image.open(mask).convert("L"))
    return [drawing, holed, *(Image.fromarray(filling.image) for filling in fillings)]


def _sheet(rows: list[list[Image]]) -> Image:
    """One drawing beside the other, what becomes of it below, enlarged."""
    from PIL import Image

    side = ENLARGED * max(image.width for row in rows for image in row)
    sheet = Image.new("RGB", (len(rows) * (side + GAP) - GAP, max(map(len, rows)) * (side + GAP) - GAP), "white")
    for column, images in enumerate(rows):
        for line, image in enumerate(images):
            enlarged = image.resize((ENLARGED * image.width, ENLARGED * image.height), Image.Resampling.BICUBIC)
            sheet.paste(enlarged, (column * (side + GAP), line * (side + GAP)))
    return sheet
