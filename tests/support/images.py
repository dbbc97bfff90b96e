"""Images and image files for tests, and captures for reconstruction: a ball in front of the camera with its depth."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image

SIDE = 32


def picture(seed: int) -> bytes:
    """Draw a PNG of 32 x 32 random pixels, the size that the tiny ViT takes, so that nothing is resized."""
    return encode(noise(SIDE, SIDE, seed=seed))


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8))


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(array: NDArray[Any]) -> bytes:
    return encode(Image.fromarray(array))


def decode(file: bytes) -> NDArray[Any]:
    return np.asarray(Image.open(io.BytesIO(file)))


def box_mask(height: int, width: int, box: tuple[int, int, int, int]) -> bytes:
    """White in a box (left, top, right, bottom)."""
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, box)
    return encode(mask)


def outside(height: int, width: int, box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """Return the part where such a mask is black."""
    return decode(box_mask(height, width, box)) == 0


def png_that_claims(width: int, height: int) -> bytes:
    """Return a few bytes whose header promises a huge image."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


HEIGHT, WIDTH = 48, 64
FOV = 60.0


def npy(array: NDArray[Any], **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def image(height: int = HEIGHT, width: int = WIDTH, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def depth(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.float32]:
    """Metres: the front of a ball of radius 0.4 at a distance of 1.5, 0 around it, as a camera of FOV sees it."""
    focal = width / 2 / np.tan(np.radians(FOV) / 2)
    x = (np.arange(width) + 0.5 - width / 2) / focal
    y = (np.arange(height)[:, None] + 0.5 - height / 2) / focal
    square, along = x**2 + y**2 + 1, 1.5  # |ray|², ray · centre
    hit = along**2 - square * (1.5**2 - 0.4**2)
    return np.where(hit > 0, (along - np.sqrt(np.maximum(hit, 0))) / square, 0).astype(np.float32)


def millimetres() -> NDArray[np.uint16]:
    return np.rint(depth() * 1000).astype(np.uint16)


def points() -> NDArray[np.float32]:
    """Return the points of the same ball; NaN around it."""
    z = np.where(depth() > 0, depth(), np.nan)
    focal = WIDTH / 2 / np.tan(np.radians(FOV) / 2)
    x = (np.arange(WIDTH) + 0.5 - WIDTH / 2) / focal
    y = (np.arange(HEIGHT)[:, None] + 0.5 - HEIGHT / 2) / focal
    return np.stack([x * z, y * z, z], axis=-1).astype(np.float32)


CAPTURE = {"image": png(image()), "depth": png(millimetres())}


def mesh(content: bytes) -> trimesh.Trimesh:
    return trimesh.load(io.BytesIO(content), file_type="glb").to_geometry()


def arrays(content: bytes) -> dict[str, NDArray[Any]]:
    with np.load(io.BytesIO(content), allow_pickle=False) as npz:
        return dict(npz)
