"""EXIF data of a picture's file: found here, without a decoder, since a decoder makes objects of it that nobody asks for."""

from __future__ import annotations

from collections.abc import Iterator

from server.media import image_blocks, tiff

MOST = 64 * 1024
"""Bytes in one file: a camera's thumbnail included, for which the format has no more room."""
HEAD = b"Exif\0\0"


class TooMuchExif(ValueError):
    """More than MOST."""


def orientation(kind: str, data: bytes) -> int:
    """How a JPEG, PNG or WebP file is to be turned, 1 to 8; 1 where it tells nothing. Raises TooMuchExif."""
    parts, nbytes = [], 0
    for part in _parts(kind, data):
        nbytes += part.stop - part.start
        if nbytes > MOST:
            raise TooMuchExif(f"EXIF data of more than {MOST:,} bytes")
        parts.append(part)
    if not parts:
        return 1
    used = parts if kind == "JPEG" else parts[:1]  # a JPEG's segment has 64 KiB at most, and others go on with it
    return tiff.orientation(b"".join(data[part] for part in used))


def _parts(kind: str, data: bytes) -> Iterator[slice]:
    if kind == "JPEG":
        for at in image_blocks.jpeg_segments(data):
            end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            if data[at : at + 2] == b"\xff\xe1" and data[at + 4 : end].startswith(HEAD):
                yield slice(at + 4 + len(HEAD), end)
    elif kind == "PNG":
        for at in image_blocks.png_chunks(data):
            if data[at + 4 : at + 8] == b"eXIf":
                yield slice(at + 8, at + 8 + int.from_bytes(data[at : at + 4], "big"))
    elif kind == "WebP":
        for at in image_blocks.webp_chunks(data):
            if data[at : at + 4] == b"EXIF":
                yield slice(at + 8, at + 8 + int.from_bytes(data[at + 4 : at + 8], "little"))
