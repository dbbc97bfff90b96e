"""Images as a caller passes them → bytes of encoded images, without an imaging library."""

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

PNG_PILLOW_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")
PILLOW_CONVERSIONS = {
    **dict.fromkeys(("I", "I;16B", "I;16L", "I;16N"), ("I", "I;16")),
    **dict.fromkeys(("PA", "RGBa"), ("RGBA",)),
    **dict.fromkeys(("RGBX", "CMYK", "YCbCr", "HSV", "LAB"), ("RGB",)),
}
"""Mode that PNG does not have → the modes to convert through. Only through I does Pillow keep 16 bits of the other byte orders."""


class BinaryFile(Protocol):
    def read(self) -> bytes: ...


class PillowImage(Protocol):
    """The methods of `PIL.Image.Image` that are used here: the client does not need Pillow."""

    @property
    def mode(self) -> str: ...
    def convert(self, mode: str) -> PillowImage: ...
    def getextrema(self) -> Any: ...
    def save(self, fp: Any, format: str) -> None: ...


FileLike = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile
"""A path, the content of a file, or a binary file."""
ImageLike = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | NDArray[np.uint8] | PillowImage


def encode(image: ImageLike, part: str = "image") -> bytes:
    """Return the content of an image file; errors name it `part`.

    A path is read, bytes and binary files are taken as they are (any format that the service decodes), a uint8 array
    (H, W), (H, W, 1), (H, W, 2), (H, W, 3) or (H, W, 4) and a Pillow image become PNG. Raises TypeError, ValueError or OSError.
    """
    if isinstance(image, np.ndarray):
        return png(image, part)
    if (content := _content(part, image)) is not None:
        return content
    pillow_image: Any = image
    if hasattr(pillow_image, "save") and hasattr(pillow_image, "mode"):
        return _pillow_png(pillow_image, part)
    raise TypeError(f"{part}: a path, bytes, a binary file, a uint8 array or a Pillow image, not {type(image).__name__}")


def encode_mask(mask: ImageLike) -> bytes:
    """Return the content of a mask's image file. A mask may also be an array of booleans."""
    if isinstance(mask, np.ndarray) and mask.dtype == np.bool_:
        return png(mask.astype(np.uint8) * np.uint8(255), "mask")
    return encode(mask, "mask")


def file_bytes(part: str, file: FileLike) -> bytes:
    """Return the content of a file of any kind; errors name it `part`. Raises TypeError or OSError."""
    if (content := _content(part, file)) is not None:
        return content
    raise TypeError(f"{part}: a path, bytes or a binary file, not {type(file).__name__}")


def png(pixels: NDArray[np.uint8], part: str = "image") -> bytes:
    """Encode uint8 pixels (H, W) or (H, W, C), C in 1..4, as PNG. Raises ValueError for anything else."""
    image = pixels[..., None] if pixels.ndim == 2 else pixels
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in PNG_COLOUR_TYPES or 0 in image.shape:
        raise ValueError(f"{part}: a uint8 array (H, W) or (H, W, 1..4), not {pixels.dtype} {pixels.shape}")
    height, width, channels = image.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each row starts with its filter type: 0, none
    rows[:, 1:] = image.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, PNG_COLOUR_TYPES[channels], 0, 0, 0)
    # level 1: the image is sent once, so speed counts for more than size
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows.data, 1)) + _chunk(b"IEND", b"")


def _pillow_png(image: PillowImage, part: str) -> bytes:
    """Encode a Pillow image as PNG. Raises ValueError for modes and values that PNG does not have, such as those of mode F."""
    if image.mode == "I":
        low, high = image.getextrema()
        if low < 0 or high > 65_535:
            raise ValueError(f"{part}: a Pillow image of mode I with values from {low} to {high}; 0 to 65535 are taken")
    for mode in PILLOW_CONVERSIONS.get(image.mode, ()):
        image = image.convert(mode)
    if image.mode not in PNG_PILLOW_MODES:
        raise ValueError(f"{part}: a Pillow image of mode {image.mode}; convert it to one of {', '.join(PNG_PILLOW_MODES)}")
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _content(part: str, file: object) -> bytes | None:
    """Return the content of a file, None if it is not one. Raises TypeError for a file in text mode."""
    if isinstance(file, bytes | bytearray | memoryview):
        return bytes(file)
    if isinstance(file, str | os.PathLike):
        try:
            return Path(file).read_bytes()
        except OSError as error:
            error.filename = os.fspath(file)  # errors of reading, unlike those of opening, name no file
            raise
    if not hasattr(file, "read"):
        return None
    content = file.read()
    if not isinstance(content, bytes):
        raise TypeError(f"{part}: open the file in binary mode ('rb')")
    return content


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
