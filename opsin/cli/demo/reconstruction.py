"""The part of `opsin demo` on reconstruction: the shape of an object in a photograph, with its depth and without."""

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
    from opsin.results import Model

CAPTURE_NAME = "motorcycle"
"""The photograph with depth in scikit-image, from the Middlebury stereo data sets."""
MAX_LONG_SIDE_PIXELS = 512
"""Maximum size of the object when its front is compared with the photograph: that of the service's own copy."""


def show_reconstruction(client: Client, model: Model, output: Path, console: Console) -> None:
    """Reconstruct the photograph's object, print a table, and write meshes and views of the points from all sides to `output`."""
    from opsin.image_encoding import png
    from opsin.point_rendering import render_turntable
    from training.data.captures import CAPTURES

    CAPTURES[CAPTURE_NAME](output).write(output, CAPTURE_NAME)
    camera = json.loads((output / f"{CAPTURE_NAME}.json").read_text(encoding="utf-8"))
    image, depth, mask = (output / f"{CAPTURE_NAME}{end}.png" for end in ("", "-depth", "-mask"))
    figures = ("Points", "Queries", "Front", "Total")
    table = make_table("Photograph", *figures, "Written", right=figures)
    variants = [("with its depth", CAPTURE_NAME, depth), ("alone", f"{CAPTURE_NAME}-alone", None)]
    for variant, name, depth_map in variants if "depth" in model.details["members"] else variants[:1]:
        result = client.reconstruct(image, depth_map, mask=mask, model=model.id, format="npz", **camera)
        mesh, sides = output / f"{name}.glb", output / f"{name}-sides.png"
        sides.write_bytes(png(render_turntable(result.cloud())))
        written = [sides]
        if result.scene is not None:
            mesh.write_bytes(client.scene(result.scene, format="glb").file)
            written.append(mesh)
        files = ", ".join(str(path) for path in written)
        psnr, took = front_psnr(result.cloud(), image, mask, camera), f"{result.timing.total_ms:.0f} ms"
        table.add_row(f"{image.name} {variant}", str(result.count), str(result.queries), f"{psnr:.1f} dB", took, files)
    console.print(f"\nShapes from one photograph, by {model.id} (front: PSNR against the photograph, from its camera)")
    console.print(table)


def front_psnr(cloud: ColouredPointCloud, image: Path, mask: Path, camera: Mapping[str, float]) -> float:
    """Return the PSNR in dB, inside the mask, of the points rendered from the photograph's camera (fx, fy, cx, cy in pixels)."""
    import numpy as np
    from PIL import Image

    from opsin.point_rendering import render_from_camera

    with Image.open(mask) as opened:
        silhouette = opened.convert("L").point(lambda value: 255 * (value >= 128))
    left, top, right, bottom = box = silhouette.getbbox() or (0, 0, *silhouette.size)
    share = min(1.0, MAX_LONG_SIDE_PIXELS / max(right - left, bottom - top))
    width, height = round((right - left) * share), round((bottom - top) * share)
    with Image.open(image) as opened:
        photograph = np.asarray(opened.convert("RGB").crop(box).resize((width, height), Image.Resampling.BOX), np.float64)
    inside = np.asarray(silhouette.crop(box).resize((width, height), Image.Resampling.NEAREST)) > 0
    across, down = width / (right - left), height / (bottom - top)
    moved = {"fx": camera["fx"] * across, "fy": camera["fy"] * down}
    moved |= {"cx": (camera["cx"] - left) * across, "cy": (camera["cy"] - top) * down}
    difference = render_from_camera(cloud, moved, height, width)[inside] - photograph[inside]
    return float(10 * np.log10(255**2 / np.mean(difference**2)))
