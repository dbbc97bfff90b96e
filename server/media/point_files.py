"""Coloured points as files: binary PLY, which every viewer opens, and NPZ."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

PLY_HEADER = """ply
format binary_little_endian 1.0
element vertex {count}
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
end_header
"""
VERTEX = np.dtype([("place", "<f4", 3), ("colour", "u1", 3)])


def to_ply(points: NDArray[np.float32], colours: NDArray[np.uint8]) -> bytes:
    """points (P, 3), colours (P, 3)."""
    vertices = np.empty(len(points), VERTEX)
    vertices["place"], vertices["colour"] = points, colours
    return PLY_HEADER.format(count=len(points)).encode() + vertices.tobytes()


def to_npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()
