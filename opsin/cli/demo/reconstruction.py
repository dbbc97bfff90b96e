"""The part of `opsin demo` that reconstructs: a photograph, with its depth and without, and its shape from all sides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from opsin.cli.shared.console import make_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from opsin.client import Client
    from opsin.point_rendering import ColouredPointCloud

NAME = "motorcycle"
"""The photograph with depth that scikit-image ships, of the Middlebury stereo data sets."""
LONG_SIDE = 512
"""Pixels of the object at which its front is compared with the photograph: as many as the service keeps of it."""


def show_reconstruction(client: Client, output: Path, console: Console) -> None:
    """Reconstruct the photograph's object, print a table, and write the meshes and pictures of their points from all sides to `output`."""
    from opsin.image_encoding import png
    from opsin.point_rendering import render_turntable
    from training.data.captures import CAPTURES

    model = next(model for model in client.models() if model.task == "reconstruct" and model.details["default"])
    CAPTURES[NAME](output).write(output, NAME)
    camera = json.loads((output / f"{NAME}.json").read_text(encoding="utf-8"))
    image, depth, mask = (output / f"{NAME}{end}.png" for end in ("", "-depth", "-mask"))
    figures = ("Points", "Queries", "Front", "Total")
    table = make_table("Photograph", *figures, "Written", right=figures)
    ways = [("with its depth", NAME, depth), ("alone", f"{NAME}-alone", None)]
    for way, name, told in ways if "depth" in model.details["members"] else ways[:1]:
        found = client.reconstruct(image, told, mask=mask, model=model.id, format="npz", **camera)
        mesh, sides = output / f"{name}.glb", output / f"{name}-sides.png"
        sides.write_bytes(png(render_turntable(found.cloud())))
        written = [sides]
        if found.scene is not None:
            mesh.write_bytes(client.scene(found.scene, format="glb").file)
            written.append(mesh)
        files = ", ".join(str(path) for path in written)
        same, took = likeness(found.cloud(), image, mask, camera), f"{found.timing.total_ms:.0f} ms"
        table.add_row(f"{image.name} {way}", str(found.count), str(found.queries), f"{same:.1f} dB", took, files)
    console.print(f"\nWhat {model.id} makes of one photograph (front: its PSNR against the photograph, from the camera)")
    console.print(table)


def likeness(cloud: ColouredPointCloud, image: Path, mask: Path, camera: Mapping[str, float]) -> float:
    """PSNR in dB, inside the mask, of what the photograph's camera (fx, fy, cx, cy in pixels) sees of the points."""
    import numpy as np
    from PIL import Image

    from opsin.point_rendering import render_from_camera

    with Image.open(mask) as opened:
        silhouette = opened.convert("L").point(lambda value: 255 * (value >= 128))
    left, top, right, bottom = box = silhouette.getbbox() or (0, 0, *silhouette.size)
    share = min(1.0, LONG_SIDE / max(right - left, bottom - top))
    width, height = round((right - left) * share), round((bottom - top) * share)
    with Image.open(image) as opened:
        photograph = np.asarray(opened.convert("RGB").crop(box).resize((width, height), Image.Resampling.BOX), np.float64)
    inside = np.asarray(silhouette.crop(box).resize((width, height), Image.Resampling.NEAREST)) > 0
    across, down = width / (right - left), height / (bottom - top)
    moved = {"fx": camera["fx"] * across, "fy": camera["fy"] * down}
    moved |= {"cx": (camera["cx"] - left) * across, "cy": (camera["cy"] - top) * down}
    difference = render_from_camera(cloud, moved, height, width)[inside] - photograph[inside]
    return float(10 * np.log10(255**2 / np.mean(difference**2)))
