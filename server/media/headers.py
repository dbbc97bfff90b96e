"""The size of an image from its first bytes, without a decoder: what is certain to decode in about a millisecond."""

from __future__ import annotations

from typing import NamedTuple

SMALL_BYTES = 64 * 1024
SMALL_PIXELS = 100_000
SMALL_ASPECT = 4
"""A thin strip grows when its short side is resized."""
MOST_SCANS = 16
"""Of a JPEG: a progressive one has about ten, and each of them is a pass over the whole image."""
START_OF_IMAGE, START_OF_SCAN = b"\xff\xd8", b"\xff\xda"
BASELINE = (0xC0, 0xC1)
HARMLESS = (0xC4, 0xDB, 0xDD, 0xE0, 0xFE)
"""Markers of tables, of restarts, of JFIF and of comments."""
OTHER_SEGMENTS = frozenset((0xCC, *range(0xE1, 0xF0)))
"""Markers of arithmetic coding's conditions and of applications. Decoders disagree on where segments of further markers end."""
HEADER = b"IHDR"
COMPRESSED_TEXT = (b"zTXt", b"iTXt", b"iCCP")
"""Chunks of a PNG that may inflate to megabytes."""


class Frame(NamedTuple):
    """What the head of a JPEG says (ITU-T T.81, annex B)."""

    width: int
    height: int
    is_plain: bool
    """One baseline frame of three channels of 8 bits, and nothing in front of it that could mean other pixels: no orientation, no inks."""


def is_small(data: bytes) -> bool:
    """A JPEG or PNG of few bytes and pixels, without anything that takes longer than they promise."""
    if len(data) > SMALL_BYTES:
        return False
    frame = jpeg_frame(data)
    width, height = frame[:2] if frame is not None else _png_size(data) or (0, 0)
    return 0 < width * height <= SMALL_PIXELS and max(width, height) <= SMALL_ASPECT * min(width, height)


def jpeg_frame(data: bytes) -> Frame | None:
    """The frame of a JPEG. None without a frame, with several, with too many scans, and where decoders may find another frame."""
    if not data.startswith(START_OF_IMAGE) or data.count(START_OF_SCAN) > MOST_SCANS:
        return None
    frame, is_plain, at, length = None, True, 2, len(data)
    while at + 10 <= length and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:
            return frame and frame._replace(is_plain=is_plain)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if frame is not None:
                return None
            is_plain = is_plain and marker in BASELINE and data[at + 4] == 8 and data[at + 9] == 3
            frame = Frame(data[at + 7] << 8 | data[at + 8], data[at + 5] << 8 | data[at + 6], False)
        elif marker in OTHER_SEGMENTS:
            is_plain = False
        elif marker not in HARMLESS:
            return None
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def _png_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of the header chunk. None if it is not the first and only one, or if there is compressed text."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n") or data[12:16] != HEADER or data.count(HEADER) > 1:
        return None
    if any(name in data for name in COMPRESSED_TEXT):
        return None
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
