"""Readers of image headers, without a decoder: size, orientation, and the number of blocks around the pixels.

A decoder makes several objects of each block, however small, and of unused EXIF data. A file that breaks off or makes no
sense is left to its decoder, which says why.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from server.media import tiff

SMALL_BYTES = 64 * 1024
"""Maximum size, with the next two constants, of images that decode in about a millisecond."""
SMALL_PIXELS = 100_000
SMALL_ASPECT = 4
"""Maximum aspect ratio: a thin strip grows when its short side is resized."""
SMALL_SCANS = 16
"""Maximum number of scans of a small JPEG: a progressive one has about ten, each a pass over the whole image."""
MAX_BLOCKS = 65_536
"""Maximum number of blocks: four times that of an image of 64 MiB whose encoder writes blocks of 4 KiB."""
MAX_SCANS = 64
"""Maximum number of scans of a progressive JPEG."""
MAX_COMPRESSED_CHUNKS = 128
"""Maximum number of profiles and texts of a PNG, each of which may inflate to a mebibyte, damaged or not."""
LIMIT_HINTS = {"JPEG": f", or {MAX_SCANS} scans", "PNG": f", or {MAX_COMPRESSED_CHUNKS} that are compressed besides its pixels"}
"""Further limits in the error message, by format."""
MAX_EXIF_BYTES = 64 * 1024
"""Maximum size of EXIF data in one file, including a camera's thumbnail; the format has no room for more."""

START_OF_IMAGE, START_OF_SCAN = b"\xff\xd8", b"\xff\xda"
BASELINE = (0xC0, 0xC1)
IGNORABLE_MARKERS = (0xC4, 0xDB, 0xDD, 0xE0, 0xFE)
"""Markers of tables, restarts, JFIF and comments."""
OTHER_SEGMENTS = frozenset((0xCC, *range(0xE1, 0xF0)))
"""Markers of arithmetic coding's conditions and of applications. Decoders disagree on where segments of further markers end."""
PHOTOSHOP, RESOURCE = 0xED, b"8BIM"
EXIF = b"Exif\0\0"
PART_BYTES = {0xDB: 65} | dict.fromkeys((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF), 3)
"""Bytes of a quantisation table and of a frame's component, by the marker's second byte: Pillow makes objects of all in a segment."""
PNG_SIGNATURE, FIRST_CHUNK, HEADER = b"\x89PNG\r\n\x1a\n", 8, b"IHDR"
"""A PNG's first bytes, the index of its first chunk, and that chunk's name."""
COMPRESSED = (b"zTXt", b"iTXt", b"iCCP")
"""Chunks of a PNG that may inflate to megabytes."""
WITHOUT_LENGTH = frozenset((0x00, 0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE), 0xFF))
"""Second bytes of JPEG markers without a length, of bytes that are not markers, and of extensions whose lengths Pillow does not read."""


class TooMuchExif(ValueError):
    """More EXIF data than MAX_EXIF_BYTES."""


class JpegFrame(NamedTuple):
    """The frame in the head of a JPEG (ITU-T T.81, annex B)."""

    width: int
    height: int
    is_plain: bool
    """One baseline frame of three channels of 8 bits, and nothing before it that could change its pixels: no orientation, no inks."""


def is_small(data: bytes) -> bool:
    """Return whether this is a JPEG or PNG of few bytes and pixels, without anything that makes it slow to decode."""
    if len(data) > SMALL_BYTES:
        return False
    frame = jpeg_frame(data)
    width, height = frame[:2] if frame is not None else _png_size(data) or (0, 0)
    return 0 < width * height <= SMALL_PIXELS and max(width, height) <= SMALL_ASPECT * min(width, height)


def jpeg_frame(data: bytes) -> JpegFrame | None:
    """Return the frame of a JPEG. None without a frame, with several, with too many scans, or if decoders may find another frame."""
    if not data.startswith(START_OF_IMAGE) or data.count(START_OF_SCAN) > SMALL_SCANS:
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
            frame = JpegFrame(data[at + 7] << 8 | data[at + 8], data[at + 5] << 8 | data[at + 6], False)
        elif marker in OTHER_SEGMENTS:
            is_plain = False
        elif marker not in IGNORABLE_MARKERS:
            return None
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def _png_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) of the header chunk. None if it is not the first and only one, or if there is compressed text."""
    if not data.startswith(PNG_SIGNATURE) or data[12:16] != HEADER or data.count(HEADER) > 1:
        return None
    if any(name in data for name in COMPRESSED):
        return None
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def has_excessive_structure(kind: str, data: bytes) -> bool:
    """Return whether a decoder would make more of a file's structure than of its pixels."""
    if kind == "JPEG":
        return _is_longer(MAX_BLOCKS, _jpeg_blocks(data)) or data.count(START_OF_SCAN) > MAX_SCANS
    if kind == "PNG":
        compressed = (at for at in png_chunks(data) if data[at + 4 : at + 8] in COMPRESSED)
        return _is_longer(MAX_BLOCKS, png_chunks(data)) or _is_longer(MAX_COMPRESSED_CHUNKS, compressed)
    if kind == "WebP":
        return _is_longer(MAX_BLOCKS, webp_chunks(data))
    return kind == "GIF" and _is_longer(MAX_BLOCKS, _gif_blocks(data))


def _is_longer(limit: int, blocks: Iterator[int]) -> bool:
    return next(islice(blocks, limit, None), None) is not None


def jpeg_segments(data: bytes) -> Iterator[int]:
    """Yield the offset of each segment, up to the first scan."""
    at = 2
    while at + 4 <= len(data) and data[at : at + 2] != START_OF_SCAN:
        yield at
        at = _after_segment(data, at)


def _after_segment(data: bytes, at: int) -> int:
    is_marker = data[at] == 0xFF and data[at + 1] not in WITHOUT_LENGTH
    return at + (2 + int.from_bytes(data[at + 2 : at + 4], "big") if is_marker else 1)


def components_of_first_scan(data: bytes) -> int:
    """Return the number of components in a JPEG's first scan. 0 if the file ends before it."""
    at = 2
    for segment in jpeg_segments(data):
        at = _after_segment(data, segment)
    return data[at + 4] if at + 4 < len(data) else 0


def _jpeg_blocks(data: bytes) -> Iterator[int]:
    """Yield once for each segment, and once for each of its tables, components or Photoshop's resources."""
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
    """Yield the offset of each chunk: length, name, content, checksum."""
    at = FIRST_CHUNK
    while at + 12 <= len(data):
        yield at
        at += 12 + int.from_bytes(data[at : at + 4], "big")


def has_late_header(data: bytes) -> bool:
    """Return whether a header chunk follows a PNG's first chunk, which the specification forbids (5.6) and Pillow obeys."""
    return data.count(HEADER) > 1 and any(at > FIRST_CHUNK and data[at + 4 : at + 8] == HEADER for at in png_chunks(data))


def webp_chunks(data: bytes) -> Iterator[int]:
    """Yield the offset of each chunk: name, length, content, padded to an even length."""
    at = 12
    while at + 8 <= len(data):
        yield at
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + length + (length & 1)


def _gif_blocks(data: bytes) -> Iterator[int]:
    """Yield the offset of each part of an extension, up to the first image."""
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
    """Return the size in bytes of the palette that follows these flags."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def orientation(kind: str, data: bytes) -> int:
    """Return the EXIF orientation of a JPEG, PNG or WebP file, 1 to 8; 1 if there is none. Raises TooMuchExif."""
    parts, nbytes = [], 0
    for part in _exif_parts(kind, data):
        nbytes += part.stop - part.start
        if nbytes > MAX_EXIF_BYTES:
            raise TooMuchExif(f"EXIF data of more than {MAX_EXIF_BYTES:,} bytes")
        parts.append(part)
    if not parts:
        return 1
    used = parts if kind == "JPEG" else parts[:1]  # a JPEG's segment has 64 KiB at most, and others continue it
    return tiff.orientation(b"".join(data[part] for part in used))


def _exif_parts(kind: str, data: bytes) -> Iterator[slice]:
    if kind == "JPEG":
        for at in jpeg_segments(data):
            end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            if data[at : at + 2] == b"\xff\xe1" and data[at + 4 : end].startswith(EXIF):
                yield slice(at + 4 + len(EXIF), end)
    elif kind == "PNG":
        for at in png_chunks(data):
            if data[at + 4 : at + 8] == b"eXIf":
                yield slice(at + 8, at + 8 + int.from_bytes(data[at : at + 4], "big"))
    elif kind == "WebP":
        for at in webp_chunks(data):
            if data[at : at + 4] == b"EXIF":
                yield slice(at + 8, at + 8 + int.from_bytes(data[at + 4 : at + 8], "little"))


def webp_size(data: bytes) -> tuple[int, int]:
    """Read width and height of a WebP file's canvas from its first chunk (RFC 9649). (0, 0) if there is none: opening it will say why."""
    chunk, head = data[12:16], data[20:30]
    if len(head) < 10:
        return 0, 0
    if chunk == b"VP8X":
        return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF
    return 0, 0
