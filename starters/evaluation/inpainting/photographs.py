"""Random crops of photographs, a function of the file's number."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image

from training.data.load_image import RGBPixels
from training.data.packages import DebianPackage, obtain
from training.errors import DataError

CROP, DOWN = 256, 720
"""Side of a crop, and the height to which photographs are shrunk first, in pixels."""


def crops(package: DebianPackage, folder: str, names: Collection[str], count: int, cache: Path) -> dict[str, list[RGBPixels]]:
    """Return crops (CROP, CROP, 3) by name. Raises DataError."""
    files = {file.stem: (number, file) for number, file in enumerate(sorted((obtain(package, cache) / folder).glob("*.jpg")))}
    if unknown := sorted(set(names) - files.keys()):
        raise DataError(f"{package.name} {package.version} has no photograph {', '.join(unknown)}; it has {', '.join(files)}")
    return {name: _crops(*found, count) for name, found in files.items() if name in names}


def _crops(number: int, file: Path, count: int) -> list[RGBPixels]:
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    reduced = np.asarray(image.resize((round(image.width * DOWN / image.height), DOWN), Image.Resampling.LANCZOS))
    dice = np.random.default_rng(number)
    made = []
    for _ in range(count):
        top, left = (int(dice.integers(0, side - CROP + 1)) for side in reduced.shape[:2])
        made.append(np.ascontiguousarray(reduced[top : top + CROP, left : left + CROP]))
    return made
