"""Emoji of several artists from Iconify's packages, `@iconify-json/NAME`: one artist's SVGs in one JSON file."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from models.arrays import UInt8Array
from training.checkpoint import replacing, write_atomically
from training.data.packages import NpmPackage, obtain
from training.errors import DataError
from training.recipe_settings import RecipeSettings

_NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


class Style(RecipeSettings):
    """One artist's icons."""

    name: str
    package: NpmPackage
    license: str


def icons(style: Style, cache: Path) -> dict[str, str]:
    """Read the icons of a style: name → SVG, in the order of names. Raises DataError."""
    file = obtain(style.package, cache) / "package/icons.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found = content["icons"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{file}: cannot be read as a set of Iconify ({error})") from error
    drawings = {}
    for name in sorted(found):
        icon = found[name]
        left, top = (icon.get(side, content.get(side, 0)) for side in ("left", "top"))
        width, height = (icon.get(side, content.get(side, 16)) for side in ("width", "height"))
        box = f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}"'
        drawings[name] = f"<svg {_NAMESPACES} {box}>{icon['body']}</svg>"
    return drawings


def rasterise(svg: str, side: int) -> Image.Image:
    """Render an SVG as RGBA, centred in a transparent square."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side, skip_system_fonts=True)
    with Image.open(io.BytesIO(bytes(png))) as opened:
        image = opened.convert("RGBA")
    image.thumbnail((side, side))
    canvas = Image.new("RGBA", (side, side))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


_LEFT_OUT = frozenset({"flag", "flags", "tone", "skin", *(f"tone{number}" for number in range(1, 6))})
"""Words of names that are left out: flags, and skin tones, which hardly change a drawing."""


def _is_left_out(name: str) -> bool:
    return not _LEFT_OUT.isdisjoint(name.split("-"))


def build_emoji(styles: Sequence[Style], side: int, cache: Path) -> tuple[tuple[str, ...], UInt8Array]:
    """Return names and drawings (N, side, side, 4), mapped; obtain and render them if `cache` lacks them. Raises DataError."""
    settings = json.dumps([side, *((style.name, style.package.sha256) for style in styles)])
    base = cache / f"emoji-{hashlib.sha256(settings.encode()).hexdigest()[:16]}"
    drawings, index = base.with_suffix(".rgba"), base.with_suffix(".json")
    if not index.is_file():
        names: list[str] = []
        with replacing(drawings) as partial, partial.open("wb") as target:
            for style in styles:
                for name, svg in icons(style, cache).items():
                    if not _is_left_out(name):
                        target.write(np.asarray(rasterise(svg, side)).tobytes())
                        names.append(f"{style.name}/{name}")
        write_atomically(index, json.dumps(names))
    stored = tuple(json.loads(index.read_text(encoding="utf-8")))
    return stored, np.memmap(drawings, np.uint8, "r").reshape(-1, side, side, 4)
