"""The part of `opsin demo` that reconstructs: a photograph with depth, and its shape from all sides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from opsin.client import Client

NAME = "motorcycle"
"""The photograph with depth that scikit-image ships, of the Middlebury stereo data sets."""


def show_reconstruction(client: Client, output: Path, console: Console) -> None:
    """Reconstruct the photograph's object, print a table, and write the mesh and a picture of its points from all sides to `output`."""
    from rich.table import Table

    from opsin.pictures import png
    from opsin.turntable import turntable
    from training.data.captures import CAPTURES

    model = next(model for model in client.models() if model.task == "reconstruct")
    output.mkdir(parents=True, exist_ok=True)
    CAPTURES[NAME](output).write(output, NAME)
    camera = json.loads((output / f"{NAME}.json").read_text(encoding="utf-8"))
    image, depth, mask = (output / f"{NAME}{end}.png" for end in ("", "-depth", "-mask"))
    found = client.reconstruct(image, depth, mask=mask, model=model.id, format="npz", **camera)
    mesh, sides = output / f"{NAME}.glb", output / f"{NAME}-sides.png"
    sides.write_bytes(png(turntable(found.points, found.colours)))
    written = [sides]
    if found.scene is not None:
        mesh.write_bytes(client.scene(found.scene, format="glb").file)
        written.append(mesh)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("Photograph", "Points", "Queries", "Total", "Written"):
        table.add_column(name, justify="left" if name in ("Photograph", "Written") else "right")
    files = ", ".join(str(path) for path in written)
    table.add_row(image.name, str(found.count), str(found.queries), f"{found.timing.total_ms:.0f} ms", files)
    console.print(f"\nWhat {model.id} makes of one photograph with depth")
    console.print(table)
