"""A z-buffer in NumPy: which triangle every pixel of a perspective image sees first, or would see last, and where on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_NEAREST = 1e-3
"""Triangles with a corner nearer to the camera are not drawn."""


@dataclass(frozen=True)
class Hits:
    """Surface under each pixel that sees any, in raster order."""

    pixel: Ints
    """(P,), row · side + column."""
    face: Ints
    """(P,)."""
    weights: Floats
    """(P, 3), barycentric, of the triangle in space."""
    depth: Floats
    """(P,), along the optical axis."""


def rasterise(corners: Floats, focal: float, centre: tuple[float, float], side: int, *, farthest: bool = False) -> Hits:
    """Nearest triangles of a square image, or the farthest ones: where rays leave for the last time. Both sides of a triangle count.

    corners: (F, 3, 3), triangles in the camera's frame (x right, y down, z forward); focal, centre: in pixels; pixel (0, 0) has its
    centre at (0.5, 0.5).
    """
    faces = np.flatnonzero(corners[..., 2].min(axis=1) > _NEAREST)
    z: Doubles = corners[faces, :, 2].astype(np.float64)  # (F, 3)
    u, v = (np.asarray(focal * corners[faces, :, axis] / z + centre[axis], np.float64) for axis in (0, 1))
    area = (u[:, 1] - u[:, 0]) * (v[:, 2] - v[:, 0]) - (u[:, 2] - u[:, 0]) * (v[:, 1] - v[:, 0])
    large = np.abs(area) > 1e-9
    faces, u, v, z, area = faces[large], u[large], v[large], z[large], area[large]
    lines = _lines(u, v) / area[:, None, None]  # (F, 3, 3): a x + b y + c, each corner's share of a point in the image
    first_row, after_row = _pixels(v.min(axis=1), v.max(axis=1), side)
    triangle, row = _expanded(first_row, after_row)  # (R,), every row of every triangle
    low, high = _span(lines[triangle], row.astype(np.float64) + 0.5)
    first, after = _pixels(np.maximum(low, 0), np.minimum(high, side), side)
    span, column = _expanded(first, after)  # (N,), every pixel of every row
    triangle, row = triangle[span], row[span]
    inverse = (lines / z[..., None]).sum(axis=1)  # (F, 3): 1 / z is linear in the image
    a, b, c = inverse.T
    depth = (1 / (a[triangle] * (column + 0.5) + b[triangle] * (row + 0.5) + c[triangle])).astype(np.float32)
    pixel = row * side + column
    buffer = np.full(side * side, -np.inf if farthest else np.inf, np.float32)
    (np.maximum if farthest else np.minimum).at(buffer, pixel, depth)
    seen = np.flatnonzero(depth == buffer[pixel])
    pixel, one = np.unique(pixel[seen], return_index=True)  # of those that are equally far
    won = seen[one]
    triangle, depth = triangle[won], depth[won]
    places = np.stack([column[won] + 0.5, row[won] + 0.5, np.ones(len(won))], axis=1)  # (P, 3)
    shares = np.einsum("pkc,pc->pk", lines[triangle], places)
    return Hits(pixel, faces[triangle], (shares / z[triangle] * depth[:, None]).astype(np.float32), depth)


def _lines(u: Doubles, v: Doubles) -> Doubles:
    """(F, 3) each → (F, 3, 3), coefficients of twice the signed area of a point and the edge opposite to each corner."""
    lines = np.empty((len(u), 3, 3))
    for corner in range(3):
        i, j = (corner + 1) % 3, (corner + 2) % 3
        lines[:, corner, 0] = v[:, i] - v[:, j]
        lines[:, corner, 1] = u[:, j] - u[:, i]
        lines[:, corner, 2] = u[:, i] * v[:, j] - u[:, j] * v[:, i]
    return lines


def _span(lines: Doubles, y: Doubles) -> tuple[Doubles, Doubles]:
    """Where all three lines are 0 at least: from and to which x, (R,) each; empty spans end before they begin."""
    low, high = np.full(len(y), -np.inf), np.full(len(y), np.inf)
    for corner in range(3):
        slope, rest = lines[:, corner, 0], lines[:, corner, 1] * y + lines[:, corner, 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            crossing = -rest / slope
        low = np.where(slope > 0, np.maximum(low, crossing), low)
        high = np.where(slope < 0, np.minimum(high, crossing), high)
        high = np.where((slope == 0) & (rest < 0), -np.inf, high)
    return low, high


def _pixels(low: Doubles, high: Doubles, side: int) -> tuple[Ints, Ints]:
    """First pixel whose centre lies between, and the one after the last."""
    first, after = (np.clip(np.nan_to_num(np.ceil(end - 0.5)), 0, side).astype(np.int64) for end in (low, np.nextafter(high, np.inf)))
    return first, after


def _expanded(first: Ints, after: Ints) -> tuple[Ints, Ints]:
    """Ranges → of each of their members the number of its range, and the member."""
    lengths = np.maximum(after - first, 0)
    owner = np.repeat(np.arange(len(first)), lengths)
    return owner, np.arange(len(owner)) + np.repeat(first - (np.cumsum(lengths) - lengths), lengths)
