"""From what a caller has in hand to the bytes of an encoded picture, without an imaging library."""

from __future__ import annotations

import os
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

PNG_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""Channels → PNG's colour type: grey, grey + alpha, RGB, RGBA."""

PILLOW_MODES_OF_PNG = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")
PILLOW_CONVERSIONS = {
    **dict.fromkeys(("I", "I;16B", "I;16L", "I;16N"), ("I", "I;16")),
    **dict.fromkeys(("PA", "RGBa"), ("RGBA",)),
    **dict.fromkeys(("RGBX", "CMYK", "YCbCr", "HSV", "LAB"), ("RGB",)),
}
"""Other mode → the modes by which it becomes one of PNG. Pillow keeps 16 bits of the other byte orders by way of I alone."""


class BinaryFile(Protocol):
    def read(self) -> bytes: ...


class PillowImage(Protocol):
    """A `PIL.Image.Image`, known by its shape: the client does not need Pillow."""

    @property
    def mode(self) -> str: ...
    def convert(self, mode: str) -> PillowImage: ...
    def getextrema(self) -> Any: ...
    def save(self, fp: Any, format: str) -> None: ...


File = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile
"""A path, the bytes of a file, or a binary file."""
Picture = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | NDArray[np.uint8] | PillowImage


def encoded(picture: Picture, part: str = "image") -> bytes:
    """The bytes of a picture file, which errors name as `part`.

    A path is read, bytes and binary files are taken as they are (any format that the service decodes), a uint8 array
    (H, W), (H, W, 1), (H, W, 2), (H, W, 3) or (H, W, 4) and a Pillow image become PNG. Raises TypeError, ValueError or OSError.
    """
    if isinstance(picture, np.ndarray):
        return png(picture, part)
    if (content := _content(part, picture)) is not None:
        return content
    image: Any = picture
    if hasattr(image, "save") and hasattr(image, "mode"):
        return _pillow_png(image, part)
    raise TypeError(f"{part}: a path, bytes, a binary file, a uint8 array or a Pillow image, not {type(picture).__name__}")


def encoded_mask(mask: Picture) -> bytes:
    """The same of a mask, which may be an array of booleans, too."""
    if isinstance(mask, np.ndarray) and mask.dtype == np.bool_:
        return png(mask.astype(np.uint8) * np.uint8(255), "mask")
    return encoded(mask, "mask")


def file_bytes(part: str, file: File) -> bytes:
    """The bytes of a file of any kind, which errors name as `part`. Raises TypeError or OSError."""
    if (content := _content(part, file)) is not None:
        return content
    raise TypeError(f"{part}: a path, bytes or a binary file, not {type(file).__name__}")


def png(pixels: NDArray[np.uint8], part: str = "image") -> bytes:
    """Lossless PNG of uint8 pixels (H, W) or (H, W, C), C in 1..4. Raises ValueError for anything else."""
    image = pixels[..., None] if pixels.ndim == 2 else pixels
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in PNG_COLOUR_TYPES or 0 in image.shape:
        raise ValueError(f"{part}: a uint8 array (H, W) or (H, W, 1..4), not {pixels.dtype} {pixels.shape}")
    height, width, channels = image.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each row starts with its filter type: 0, none
    rows[:, 1:] = image.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, PNG_COLOUR_TYPES[channels], 0, 0, 0)
    # level 1: the picture travels once, so time counts for more than size
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows.data, 1)) + _chunk(b"IEND", b"")


def _pillow_png(image: PillowImage, part: str) -> bytes:
    """Raises ValueError for values that a picture does not have, such as those of mode F."""
    if image.mode == "I":
        low, high = image.getextrema()
        if low < 0 or high > 65_535:
            raise ValueError(f"{part}: a Pillow image of mode I with values from {low} to {high}; 0 to 65535 are taken")
    for mode in PILLOW_CONVERSIONS.get(image.mode, ()):
        image = image.convert(mode)
    if image.mode not in PILLOW_MODES_OF_PNG:
        raise ValueError(f"{part}: a Pillow image of mode {image.mode}; convert it to one of {', '.join(PILLOW_MODES_OF_PNG)}")
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _content(part: str, file: object) -> bytes | None:
    """None for what is no file. Raises TypeError for one in text mode."""
    if isinstance(file, bytes | bytearray | memoryview):
        return bytes(file)
    if isinstance(file, str | os.PathLike):
        try:
            return Path(file).read_bytes()
        except OSError as error:
            error.filename = os.fspath(file)  # an error of reading, unlike one of opening, names no file
            raise
    if not hasattr(file, "read"):
        return None
    content = file.read()
    if not isinstance(content, bytes):
        raise TypeError(f"{part}: open the file in binary mode ('rb')")
    return content


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
