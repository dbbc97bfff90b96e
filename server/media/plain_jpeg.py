"""Small JPEGs without anything unusual, given to Pillow's decoder directly: reading their heads takes Pillow longer than their pixels."""

from __future__ import annotations

from PIL import Image

from server.media import headers

MOST_PIXELS = 16_384
"""From 128 × 128 on, the pixels cost more than the head."""


def decoded(data: bytes, max_pixels: int) -> Image.Image | None:
    """RGB, the same pixels as by `Image.open`. None for what is not so plain, and for damaged files: Pillow says what is wrong with them.

    So few pixels need nothing of a `MemoryBudget`."""
    if len(data) > headers.SMALL_BYTES:
        return None
    frame = headers.jpeg_frame(data)
    if frame is None or not frame.is_plain or not 0 < frame.width * frame.height <= min(MOST_PIXELS, max_pixels):
        return None
    try:
        return Image.frombytes("RGB", (frame.width, frame.height), data, "jpeg", "RGB", "")
    except (ValueError, OSError):
        return None
