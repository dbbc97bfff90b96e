"""Images in a terminal: each character shows two pixels, the upper one as its colour and the lower one as its background."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import Console
    from rich.text import Text

DEFAULT_COLUMNS = 48
UPPER_HALF_BLOCK = "▀"


def can_draw(console: Console) -> bool:
    """Return whether this terminal has enough colours, and Pillow is installed."""
    if not console.is_terminal or console.color_system not in ("truecolor", "256"):
        return False
    try:
        import PIL  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def draw(image: Image, columns: int = DEFAULT_COLUMNS) -> Text:
    """Draw an image, `columns` characters wide and, if it is square, half as many lines high."""
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    lines = max(1, round(columns * image.height / image.width / 2))
    pixels = image.convert("RGB").resize((columns, 2 * lines))
    text = Text()
    for line in range(lines):
        for column in range(columns):
            upper, lower = (Color.from_rgb(*pixels.getpixel((column, 2 * line + half))) for half in (0, 1))  # type: ignore[misc]
            text.append(UPPER_HALF_BLOCK, Style(color=upper, bgcolor=lower))
        text.append("\n")
    return text
