"""A package of npm with a few meshes of known shape, and what recipes that train on renders of them have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from PIL import Image

from tests.training.archives import npm

BALLS, BOXES = ("marble", "globe", "bubble"), ("brick", "book")


def package(folder: Path) -> dict[str, Any]:
    """Write a package to the cache `folder` and return its entry of a recipe. One file is not a mesh; book and page have a texture next to
    them."""
    art = folder / "meshes-art"
    art.mkdir(parents=True)
    create: Any = trimesh.creation
    for number, name in enumerate(BALLS):
        create.icosphere(subdivisions=2, radius=1.0 + number).export(art / f"{name}.obj", include_texture=False)
    create.box(extents=(1, 2, 3)).export(art / "brick.obj", include_texture=False)
    for name, height in (("book", 1), ("page", 2)):
        corners = "".join(f"v {x} {y} 0\nvt {(x + 1) / 2} {(y / height + 1) / 2}\n" for x, y in _corners(height))
        (art / f"{name}.obj").write_text(f"{corners}f 1/1 2/2 3/3\nf 1/1 3/3 4/4\n", encoding="utf-8")
    (art / "broken.obj").write_text("v 0 0 0\n", encoding="utf-8")
    halves = np.zeros((64, 64, 3), np.uint8)
    halves[:32], halves[32:] = (250, 0, 0), (0, 0, 250)  # red above, blue below
    for name in ("book", "page"):
        Image.fromarray(halves).save(art / f"{name}.png")
    files = {f"shapes/{file.name}": file for file in sorted(art.iterdir())}
    return npm(folder, "shapes", files)


def _corners(height: float) -> tuple[tuple[float, float], ...]:
    return (-1, -height), (1, -height), (1, height), (-1, height)


def data(cache: Path) -> dict[str, Any]:
    """Return `data` of a recipe."""
    root = "package/shapes"
    return {
        "kind": "renders",
        "seen_size": 16,
        "surface_points": 1500,
        "composed": 2,
        "composed_views": 2,
        "packages": [
            {
                "npm": package(cache),
                "license": "MIT",
                "objects": [
                    {"category": "broken", "views": 1, "files": [f"{root}/broken.obj"]},
                    {"category": "balls", "views": 3, "files": [f"{root}/{name}.obj" for name in BALLS]},
                    {"category": "boxes", "part": "val", "views": 2, "files": [f"{root}/brick.obj"]},
                    {
                        "category": "books",
                        "part": "test",
                        "views": 3,
                        "files": [f"{root}/book.obj", f"{root}/page.obj"],
                        "texture": f"{root}/{{stem}}.png",
                    },
                ],
            }
        ],
    }


def recipe(cache: Path) -> dict[str, Any]:
    """Return the common part of recipes on this data, without name, model, phases and release."""
    return {
        "version": "1.0.0",
        "license": "Apache-2.0",
        "preprocess": {"image_size": 32, "short_side": 32, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        "space": {"extent": 4.0, "spacing": 0.25, "margin": 4},
        "data": data(cache),
    }
