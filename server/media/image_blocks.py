"""How many blocks a picture's file has in front of its pixels and around them: a decoder makes several objects of each, however small.

Nothing is decoded here. A file that breaks off or makes no sense is left to its decoder, which says why.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

MOST = 65_536
"""Four times what a picture of 64 MiB has whose encoder writes blocks of 4 KiB."""
MOST_SCANS = 64
"""Of a progressive JPEG, each of which passes over all pixels; encoders write about ten."""

START_OF_SCAN = b"\xff\xda"
WITHOUT_LENGTH = frozenset((0x00, 0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE), 0xFF))
"""Second bytes of a JPEG marker that stands alone, or is none; and of extensions, whose lengths Pillow does not read."""


def too_many(kind: str, data: bytes) -> bool:
    """Whether a decoder would make more of a file's structure than of its pixels."""
    if kind == "JPEG":
        return _more_than(MOST, jpeg_segments(data)) or data.count(START_OF_SCAN) > MOST_SCANS
    if kind == "PNG":
        return _more_than(MOST, png_chunks(data))
    if kind == "WebP":
        return _more_than(MOST, webp_chunks(data))
    return kind == "GIF" and _more_than(MOST, _gif_blocks(data))


def _more_than(most: int, blocks: Iterator[int]) -> bool:
    return next(islice(blocks, most, None), None) is not None


def jpeg_segments(data: bytes) -> Iterator[int]:
    """Where each segment begins, up to the first scan."""
    at = 2
    while at + 4 <= len(data) and data[at : at + 2] != START_OF_SCAN:
        yield at
        is_marker = data[at] == 0xFF and data[at + 1] not in WITHOUT_LENGTH
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big") if is_marker else 1


def png_chunks(data: bytes) -> Iterator[int]:
    """Where each begins: length, name, content, sum."""
    at = 8
    while at + 12 <= len(data):
        yield at
        at += 12 + int.from_bytes(data[at : at + 4], "big")


def webp_chunks(data: bytes) -> Iterator[int]:
    """Where each begins: name, length, content, padded to an even length."""
    at = 12
    while at + 8 <= len(data):
        yield at
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + length + (length & 1)


def _gif_blocks(data: bytes) -> Iterator[int]:
    """Where each part of an extension begins, up to the first picture."""
    at = 13 + _palette(data[10:11])
    while data[at : at + 1] != b"," and at < len(data):
        yield at
        if data[at] != ord("!"):
            at += 1
            continue
        at += 2
        while at < len(data) and data[at]:
            yield at
            at += 1 + data[at]
        at += 1


def _palette(flags: bytes) -> int:
    """Bytes of the palette that follows these flags."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0
