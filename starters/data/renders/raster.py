"""Z-buffer in NumPy: the first, or last, triangle on the ray of every pixel of a perspective image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.arrays import Float32Array, Float64Array, Int64Array

_MIN_DEPTH = 1e-3
"""Minimum distance of a triangle's corners from the camera; nearer triangles are not drawn."""


@dataclass(frozen=True)
class Hits:
    """Surface points at the pixels that a triangle covers, in raster order."""

    pixel: Int64Array
    """(P,), row · side + column."""
    face: Int64Array
    """(P,)."""
    weights: Float32Array
    """(P, 3), barycentric, of the triangle in space."""
    depth: Float32Array
    """(P,), along the optical axis."""


def rasterise(corners: Float32Array, focal: float, centre: tuple[float, float], side: int, *, farthest: bool = False) -> Hits:
    """Render the nearest triangles of a square image, or the farthest, where rays exit. Both sides of a triangle count.

    corners: (F, 3, 3), triangles in the camera's frame (x right, y down, z forward); focal, centre: in pixels; pixel (0, 0) has its
    centre at (0.5, 0.5).
    """
    faces = np.flatnonzero(corners[..., 2].min(axis=1) > _MIN_DEPTH)
    z: Float64Array = corners[faces, :, 2].astype(np.float64)  # (F, 3)
    u, v = (np.asarray(focal * corners[faces, :, axis] / z + centre[axis], np.float64) for axis in (0, 1))
    area = (u[:, 1] - u[:, 0]) * (v[:, 2] - v[:, 0]) - (u[:, 2] - u[:, 0]) * (v[:, 1] - v[:, 0])
    large = np.abs(area) > 1e-9
    faces, u, v, z, area = faces[large], u[large], v[large], z[large], area[large]
    lines = _lines(u, v) / area[:, None, None]  # (F, 3, 3): a x + b y + c, each corner's share of a point in the image
    first_row, after_row = _pixels(v.min(axis=1), v.max(axis=1), side)
    triangle, row = _expand(first_row, after_row)  # (R,), every row of every triangle
    low, high = _span(lines[triangle], row.astype(np.float64) + 0.5)
    first, after = _pixels(np.maximum(low, 0), np.minimum(high, side), side)
    span, column = _expand(first, after)  # (N,), every pixel of every row
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


def _lines(u: Float64Array, v: Float64Array) -> Float64Array:
    """Return coefficients of twice the signed area of a point and the edge opposite to each corner: (F, 3) each → (F, 3, 3)."""
    lines = np.empty((len(u), 3, 3))
    for corner in range(3):
        i, j = (corner + 1) % 3, (corner + 2) % 3
        lines[:, corner, 0] = v[:, i] - v[:, j]
        lines[:, corner, 1] = u[:, j] - u[:, i]
        lines[:, corner, 2] = u[:, i] * v[:, j] - u[:, j] * v[:, i]
    return lines


def _span(lines: Float64Array, y: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Return the range of x in which all three lines are at least 0, (R,) each; an empty range ends before it starts."""
    low, high = np.full(len(y), -np.inf), np.full(len(y), np.inf)
    for corner in range(3):
        slope, rest = lines[:, corner, 0], lines[:, corner, 1] * y + lines[:, corner, 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            crossing = -rest / slope
        low = np.where(slope > 0, np.maximum(low, crossing), low)
        high = np.where(slope < 0, np.minimum(high, crossing), high)
        high = np.where((slope == 0) & (rest < 0), -np.inf, high)
    return low, high


def _pixels(low: Float64Array, high: Float64Array, side: int) -> tuple[Int64Array, Int64Array]:
    """Return the first pixel whose centre lies in the range, and the one after the last."""
    first, after = (np.clip(np.nan_to_num(np.ceil(end - 0.5)), 0, side).astype(np.int64) for end in (low, np.nextafter(high, np.inf)))
    return first, after


def _expand(first: Int64Array, after: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Expand ranges to their members: the number of each member's range, and the member."""
    lengths = np.maximum(after - first, 0)
    owner = np.repeat(np.arange(len(first)), lengths)
    return owner, np.arange(len(owner)) + np.repeat(first - (np.cumsum(lengths) - lengths), lengths)
