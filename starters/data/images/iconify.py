"""Icons of Iconify's packages, `@iconify-json/NAME`: one artist's SVGs in one JSON file."""

from __future__ import annotations

import io
import json
from pathlib import Path

import resvg_py
from PIL import Image

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
