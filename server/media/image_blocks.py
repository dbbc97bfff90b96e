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

MOST_COMPRESSED = 128
"""Of a PNG's profiles and texts, each of which may come to a mebibyte, damaged or not."""
MOST_OF_A_KIND = {"JPEG": f", or {MOST_SCANS} scans", "PNG": f", or {MOST_COMPRESSED} that are compressed beside its pixels"}
"""For the message."""

START_OF_SCAN = b"\xff\xda"
PHOTOSHOP, RESOURCE = 0xED, b"8BIM"
PART_BYTES = {0xDB: 65} | dict.fromkeys((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF), 3)
"""Of a quantisation table and of a frame's component: Pillow makes objects of as many as a segment holds, by its marker's second byte."""
FIRST_CHUNK, HEADER = 8, b"IHDR"
"""Index of a PNG's first chunk, and its name."""
COMPRESSED = frozenset((b"iCCP", b"zTXt", b"iTXt"))
WITHOUT_LENGTH = frozenset((0x00, 0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE), 0xFF))
"""Second bytes of a JPEG marker that stands alone, or is none; and of extensions, whose lengths Pillow does not read."""


def too_many(kind: str, data: bytes) -> bool:
    """Whether a decoder would make more of a file's structure than of its pixels."""
    if kind == "JPEG":
        return _more_than(MOST, _jpeg_blocks(data)) or data.count(START_OF_SCAN) > MOST_SCANS
    if kind == "PNG":
        compressed = (at for at in png_chunks(data) if data[at + 4 : at + 8] in COMPRESSED)
        return _more_than(MOST, png_chunks(data)) or _more_than(MOST_COMPRESSED, compressed)
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
        at = _after_segment(data, at)


def _after_segment(data: bytes, at: int) -> int:
    is_marker = data[at] == 0xFF and data[at + 1] not in WITHOUT_LENGTH
    return at + (2 + int.from_bytes(data[at + 2 : at + 4], "big") if is_marker else 1)


def components_of_first_scan(data: bytes) -> int:
    """Number of components in a JPEG's first scan. 0 if the file ends before it."""
    at = 2
    for segment in jpeg_segments(data):
        at = _after_segment(data, segment)
    return data[at + 4] if at + 4 < len(data) else 0


def _jpeg_blocks(data: bytes) -> Iterator[int]:
    """One for each segment, and one for each of its tables, components or Photoshop's resources."""
    for at in jpeg_segments(data):
        yield at
        if data[at] != 0xFF:
            continue
        kind, end = data[at + 1], min(len(data), at + 2 + int.from_bytes(data[at + 2 : at + 4], "big"))
        if kind == PHOTOSHOP:
            yield from range(data.count(RESOURCE, at, end))
        elif kind in PART_BYTES:
            yield from range(at, end, PART_BYTES[kind])


def png_chunks(data: bytes) -> Iterator[int]:
    """Where each begins: length, name, content, sum."""
    at = FIRST_CHUNK
    while at + 12 <= len(data):
        yield at
        at += 12 + int.from_bytes(data[at : at + 4], "big")


def has_late_header(data: bytes) -> bool:
    """Whether a header chunk follows a PNG's first chunk, which the specification forbids (5.6) and Pillow obeys."""
    return data.count(HEADER) > 1 and any(at > FIRST_CHUNK and data[at + 4 : at + 8] == HEADER for at in png_chunks(data))


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
