"""Coloured points as files: binary PLY, which every viewer opens, and NPZ."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PLY_HEADER = """ply
format binary_little_endian 1.0
comment spacing {spacing:g}
{seen_spacing}element vertex {count}
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
{seen}end_header
"""
VERTEX = [("place", "<f4", 3), ("colour", "u1", 3)]


@dataclass(frozen=True)
class Seen:
    """Which points of a file were seen."""

    flags: NDArray[np.uint8]
    """(P,): 1 where a point was seen, 0 where it is guessed."""
    spacing: float
    """Between points that were seen."""


def to_ply(points: NDArray[np.float32], colours: NDArray[np.uint8], spacing: float, seen: Seen | None = None) -> bytes:
    """points (P, 3), colours (P, 3); spacing: between points that were not seen, written as a comment for those who draw them."""
    vertices = np.empty(len(points), VERTEX if seen is None else [*VERTEX, ("seen", "u1")])
    vertices["place"], vertices["colour"] = points, colours
    told = {"seen": "", "seen_spacing": ""}
    if seen is not None:
        vertices["seen"] = seen.flags
        told = {"seen": "property uchar seen\n", "seen_spacing": f"comment seen_spacing {seen.spacing:g}\n"}
    return PLY_HEADER.format(count=len(points), spacing=spacing, **told).encode() + vertices.tobytes()


def to_npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()
