"""The size of an image from its first bytes, without a decoder: what is certain to decode in about a millisecond."""

from __future__ import annotations

SMALL_BYTES = 64 * 1024
SMALL_PIXELS = 100_000
SMALL_ASPECT = 4
"""A thin strip grows when its short side is resized."""
MOST_SCANS = 16
"""Of a JPEG: a progressive one has about ten, and each of them is a pass over the whole image."""
COMPRESSED_TEXT = (b"zTXt", b"iTXt", b"iCCP")
"""Chunks of a PNG that may inflate to megabytes."""


def is_small(data: bytes) -> bool:
    """A JPEG or PNG of few bytes and pixels, without anything that takes longer than they promise."""
    if len(data) > SMALL_BYTES:
        return False
    width, height = _jpeg_size(data) or _png_size(data) or (0, 0)
    return 0 < width * height <= SMALL_PIXELS and max(width, height) <= SMALL_ASPECT * min(width, height)


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of its first frame header (ITU-T T.81, B.2.2); None where there is none, or too many scans."""
    if not data.startswith(b"\xff\xd8") or data.count(b"\xff\xda") > MOST_SCANS:
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 7 : at + 9]), int.from_bytes(data[at + 5 : at + 7])
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return None


def _png_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of its header chunk; None where there is none, or compressed text."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n") or data[12:16] != b"IHDR" or any(name in data for name in COMPRESSED_TEXT):
        return None
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
