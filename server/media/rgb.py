"""Decoded images of any mode → RGB or RGBA, in strips, since some conversions need several copies of their pixels."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image, ImageChops

from models.media.image_ops import grey16_to_rgb

SIXTEEN_BIT_GREY = ("I;16", "I;16B", "I;16L", "I;16N")
NOT_DISPLAYABLE = ("F", "I", "LAB", "HSV")
STRIP_PIXELS = 256 * 1024


def is_displayable(image: Image.Image, kind: str) -> bool:
    """Return whether the image's mode has a conversion. kind: the format of its file."""
    return _is_sixteen_bit_grey(image, kind) or image.mode not in NOT_DISPLAYABLE


def convert_mode(image: Image.Image, kind: str, transparency: bool) -> Image.Image:
    """Return a displayable image as RGB, or as RGBA if it is transparent and that is kept."""
    convert, mode = _conversion(image, kind, transparency)
    if convert is None:
        return image
    result = Image.new(mode, image.size, None)
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        result.paste(convert(image.crop(box)), box)
    return result


def on_white(rgba: Image.Image) -> Image.Image:
    """Return RGBA composited with white, as RGB."""
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _conversion(image: Image.Image, kind: str, transparency: bool) -> tuple[Callable[[Image.Image], Image.Image] | None, str]:
    """Return the conversion, None if the image needs none, and the mode that it leads to."""
    if _is_sixteen_bit_grey(image, kind):
        return grey16_to_rgb, "RGB"
    if image.mode == "CMYK" and kind == "JPEG" and "adobe" not in image.info:
        return lambda strip: ImageChops.invert(strip).convert("RGB"), "RGB"  # Pillow takes all for Adobe's, which stores inks inverted
    if transparency and image.mode == "RGBA":
        return None, "RGBA"
    if image.has_transparency_data:
        return (_rgba, "RGBA") if transparency else (lambda strip: on_white(_rgba(strip)), "RGB")
    return (None if image.mode == "RGB" else lambda strip: strip.convert("RGB")), "RGB"


def _is_sixteen_bit_grey(image: Image.Image, kind: str) -> bool:
    return image.mode in SIXTEEN_BIT_GREY or (image.mode == "I" and kind == "PNG")


def _rgba(strip: Image.Image) -> Image.Image:
    return strip.convert("LA").convert("RGBA") if strip.mode == "La" else strip.convert("RGBA")
