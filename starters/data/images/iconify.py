"""Drawings of Iconify's packages, `@iconify-json/NAME`: one artist's icons as SVG in one file of JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path

import resvg_py
from PIL import Image

from training.data.packages import NpmPackage, obtain
from training.errors import DataError
from training.recipe_settings import Settings

_NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
_FLAG = 512
"""Pixels along the longer side of a flag."""


class Style(Settings):
    """One artist's icons."""

    name: str
    package: NpmPackage
    license: str


def icons(style: Style, cache: Path) -> dict[str, str]:
    """Name → SVG, in the order of names. Raises DataError."""
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


def flags(style: Style, codes: Iterable[str], cache: Path) -> dict[str, Image.Image]:
    """Code → its flag on white, of an artist whose icons are named by codes of countries; those that there are. Raises DataError."""
    found = icons(style, cache)
    return {code: _on_white(drawn(found[code.lower()], _FLAG, square=False)) for code in codes if code.lower() in found}


def drawn(svg: str, side: int, *, square: bool = True) -> Image.Image:
    """RGBA; in the middle of a transparent square, or alone."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side, skip_system_fonts=True)
    with Image.open(io.BytesIO(bytes(png))) as opened:
        image = opened.convert("RGBA")
    image.thumbnail((side, side))
    if not square:
        return image
    canvas = Image.new("RGBA", (side, side))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def _on_white(image: Image.Image) -> Image.Image:
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image)
    return canvas.convert("RGB")
