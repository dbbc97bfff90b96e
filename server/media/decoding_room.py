"""Room for pictures that are decoded at the same time, in bytes of memory."""

from __future__ import annotations

import threading

from PIL import Image, TiffImagePlugin

ONE_BYTE = frozenset(("1", "L", "P"))
TWO_BYTES = frozenset(("I;16", "I;16B", "I;16L", "I;16N"))
PIXEL = 4
"""Bytes of a pixel of every other mode, RGB included."""
WEBP_CANVASES = 3
"""Of four bytes a pixel, which the decoder keeps beside the picture."""
COEFFICIENT = 2
"""Bytes that a progressive JPEG keeps of a pixel in each channel until its last scan."""

TILE_WIDTH, TILE_HEIGHT = 322, 323
SMALL = 64
"""So many of what a room holds wait for nobody."""


class DecodingRoom:
    """Lets threads in while what they decode fits into `nbytes`; one that would never fit is let in alone."""

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self._taken = 0
        self._changed = threading.Condition()
        self._door = threading.Lock()
        """Held by the one that is next, so that a large picture is not overtaken for ever."""

    def acquire(self, nbytes: int) -> None:
        """Blocks until there is room; `release` gives it back. What is small never waits: behind large pictures, it would wait for long."""
        if SMALL * nbytes <= self._nbytes:
            with self._changed:
                self._taken += nbytes
            return
        with self._door, self._changed:
            if self._taken and self._taken + nbytes > self._nbytes:
                self._changed.wait_for(lambda: not self._taken or self._taken + nbytes <= self._nbytes)
            self._taken += nbytes

    def release(self, nbytes: int) -> None:
        with self._changed:
            self._taken -= nbytes
            self._changed.notify_all()


def bytes_to_decode(image: Image.Image, kind: str, *, is_turned: bool) -> int:
    """Memory at the worst moment between opening a picture and having it as RGB, upright."""
    stored = 1 if image.mode in ONE_BYTE else 2 if image.mode in TWO_BYTES else PIXEL
    if kind == "WebP":
        stored += WEBP_CANVASES * PIXEL
    if image.info.get("progressive"):
        stored += COEFFICIENT * len(image.getbands())
    is_copied = image.mode != "RGB" or image.has_transparency_data
    pixel = max(stored + PIXEL * is_copied, 2 * PIXEL * is_turned)
    width, height = tile_size(image)
    return image.width * image.height * pixel + width * height * PIXEL


def tile_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of a TIFF's tiles, which may be larger than the picture; (0, 0) where there are none."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0, 0
    return int(image.tag_v2.get(TILE_WIDTH, 0)), int(image.tag_v2.get(TILE_HEIGHT, 0))
