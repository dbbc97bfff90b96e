"""Images in a terminal: two pixels a character, the upper one as its colour and the lower one as its background."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import Console
    from rich.text import Text

COLUMNS = 48
UPPER_HALF = "▀"


def can_draw(console: Console) -> bool:
    """Whether this terminal has the colours, and this environment Pillow."""
    if not console.is_terminal or console.color_system not in ("truecolor", "256"):
        return False
    try:
        import PIL  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def draw(image: Image, columns: int = COLUMNS) -> Text:
    """The image, so many characters wide and half as many lines high if it is square."""
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    lines = max(1, round(columns * image.height / image.width / 2))
    pixels = image.convert("RGB").resize((columns, 2 * lines))
    text = Text()
    for line in range(lines):
        for column in range(columns):
            upper, lower = (Color.from_rgb(*pixels.getpixel((column, 2 * line + half))) for half in (0, 1))  # type: ignore[misc]
            text.append(UPPER_HALF, Style(color=upper, bgcolor=lower))
        text.append("\n")
    return text
