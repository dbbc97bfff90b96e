"""Images for tests, and files of them."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32


def picture(seed: int) -> bytes:
    """A PNG of 32 x 32 random pixels, the size that the tiny ViT takes, so that nothing is resized."""
    return encoded(noise(SIDE, SIDE, seed=seed))


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(array: NDArray[Any]) -> bytes:
    return encoded(Image.fromarray(array))


def decoded(file: bytes) -> NDArray[Any]:
    return np.asarray(Image.open(io.BytesIO(file)))


def box_mask(height: int, width: int, box: tuple[int, int, int, int]) -> bytes:
    """White in a box (left, top, right, bottom)."""
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, box)
    return encoded(mask)


def outside(height: int, width: int, box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """Where such a mask is black."""
    return decoded(box_mask(height, width, box)) == 0


def png_that_claims(width: int, height: int) -> bytes:
    """A few bytes whose header promises a huge picture."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
