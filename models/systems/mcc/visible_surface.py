"""Visible surface of a scene: depth and silhouette per pixel, and the points that they rule out. Imports no torch: gateways use it, too.

Points are in normalised units; the camera is at `-centre` in them, with axes parallel to theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.arrays import Float32Array

_DIAGONAL = 0.7
_OFFSETS = np.array(
    [(0, 0, 0), (0, 0, 1)]
    + [(x, y, 0) for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1))]
    + [(x * _DIAGONAL, y * _DIAGONAL, 0) for x in (1, -1) for y in (1, -1)],
    np.float32,
)
"""Offsets of a point that also count, in units of the tolerance: none, farther away, or sideways."""
_MAX_RESIDUAL_PIXELS = 1.0
"""Maximum residual in pixels (root mean square) of points for the camera that fits them."""
_MAX_STEEPNESS = 6.0
"""Maximum depth between neighbouring pixels of one surface, in widths of a pixel."""


@dataclass(frozen=True)
class VisibleMesh:
    vertices: Float32Array
    """(V, 3), corners of pixels; several at one corner where the surface jumps."""
    corners: Float32Array
    """(V, 2), column and row of the corner: 0 to the width and the height."""
    pixels: NDArray[np.int64]
    """(V,), a pixel of each vertex, in the order of `VisibleSurface.points`."""
    faces: NDArray[np.int64]
    """(F, 3), counterclockwise from the camera."""


@dataclass(frozen=True)
class VisibleSurface:
    depth: NDArray[np.float32]
    """(h, w), along the optical axis; NaN where the object was not seen."""
    mask: NDArray[np.bool_]
    """(h, w), the silhouette: the object is visible nowhere else."""
    camera: NDArray[np.float32]
    """(4,): fx, fy, cx, cy in pixels; the centre of the first pixel is at (0.5, 0.5)."""
    frame: NDArray[np.float32]
    """(4,): left, top, right and bottom edge of the camera's view, in the same pixels; nothing outside is ruled out."""
    centre: NDArray[np.float32]
    """(3,)."""

    @cached_property
    def seen(self) -> NDArray[np.bool_]:
        """(h, w)."""
        return np.isfinite(self.depth) & self.mask

    @cached_property
    def points(self) -> Float32Array:
        """(P, 3), of the seen pixels, in raster order."""
        rows, columns = np.nonzero(self.seen)
        return self.unproject(columns + 0.5, rows + 0.5, self.depth[self.seen])

    @cached_property
    def pixel_widths(self) -> NDArray[np.float32]:
        """(P,): width of a pixel at `points`."""
        widths: NDArray[np.float32] = (self.depth[self.seen] / self.camera[:2].mean()).astype(np.float32)
        return widths

    def unproject(self, columns: NDArray[Any], rows: NDArray[Any], depth: NDArray[np.float32]) -> Float32Array:
        fx, fy, cx, cy = self.camera.astype(np.float64)
        points = np.stack([(columns - cx) / fx * depth, (rows - cy) / fy * depth, depth], axis=1)
        moved: Float32Array = (points - self.centre).astype(np.float32)
        return moved

    def project(self, points: Float32Array) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Project points (P, 3) to column, row and depth, (P,) each. Points that are not in front of the camera have no finite column."""
        fx, fy, cx, cy = self.camera
        x, y, depth = (points + self.centre).T
        ahead = np.where(depth > 0, depth, np.nan)
        return fx * x / ahead + cx, fy * y / ahead + cy, depth

    def is_consistent(self, points: Float32Array, tolerance: float) -> NDArray[np.bool_]:
        """Return True for points (P, 3) that silhouette and visible surface allow within the tolerance: (P,)."""
        allowed = np.zeros(len(points), np.bool_)
        for offset in _OFFSETS * np.float32(tolerance):
            allowed[~allowed] = self._is_unobstructed(points[~allowed] + offset)
        return allowed

    def _is_unobstructed(self, points: Float32Array) -> NDArray[np.bool_]:
        columns, rows, depth = self.project(points)
        left, top, right, bottom = self.frame
        framed = (columns >= left) & (columns < right) & (rows >= top) & (rows < bottom)
        height, width = self.mask.shape
        in_image = framed & (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        column, row = (np.where(in_image, position, 0).astype(np.intp) for position in (columns, rows))
        behind = ~(depth < np.where(self.seen[row, column], self.depth[row, column], -np.inf))
        return np.asarray(np.isfinite(columns) & (~framed | (in_image & self.mask[row, column] & behind)))

    def mesh(self, jump: float) -> VisibleMesh:
        """Return a mesh with a square per seen pixel, joined to neighbours unless depth jumps.

        A jump is more than `jump` or, where the surface is steep, more than some widths of a pixel.
        """
        rows, columns = np.nonzero(self.seen)
        padded = np.pad(np.where(self.seen, self.depth, np.nan), 1, constant_values=np.nan)
        pixel_depth = padded[rows + 1, columns + 1]
        max_jump = np.maximum(jump, _MAX_STEEPNESS * self.pixel_widths)
        corners, depths = [], []
        for down, right in ((0, 0), (1, 0), (1, 1), (0, 1)):  # counterclockwise
            around = np.stack([padded[rows + down + i, columns + right + j] for i in (0, 1) for j in (0, 1)])
            near = np.abs(around - pixel_depth) <= max_jump  # at least the pixel itself
            depths.append(np.where(near, around, 0).sum(axis=0) / near.sum(axis=0))
            corners.append((rows + down) * (self.depth.shape[1] + 1) + columns + right)
        corner, depth = np.stack(corners, axis=1).ravel(), np.stack(depths, axis=1).ravel().astype(np.float32)
        key = np.stack([corner, depth.view(np.int32).astype(np.int64)], axis=1)
        _, first, index = np.unique(key, axis=0, return_index=True, return_inverse=True)
        square = index.reshape(-1, 4)
        positions = np.stack([corner[first] % (self.depth.shape[1] + 1), corner[first] // (self.depth.shape[1] + 1)], axis=1)
        faces = np.concatenate([square[:, [0, 1, 2]], square[:, [0, 2, 3]]]).astype(np.int64)
        vertices = self.unproject(positions[:, 0].astype(np.float64), positions[:, 1].astype(np.float64), depth[first])
        return VisibleMesh(vertices, positions.astype(np.float32), first // 4, faces)


def fit_camera(points: Float32Array, seen: NDArray[np.bool_]) -> NDArray[np.float32] | None:
    """Fit a pinhole camera, fx, fy, cx, cy (4,), that sees each point (H, W, 3) in its pixel, by least squares; None if none fits."""
    rows, columns = np.nonzero(seen)
    seen_points = points[seen].astype(np.float64)
    if len(seen_points) < 3 or (seen_points[:, 2] <= 0).any():
        return None
    solutions, residual = [], 0.0
    for axis, pixel in ((0, columns), (1, rows)):
        slopes = np.stack([seen_points[:, axis] / seen_points[:, 2], np.ones(len(seen_points))], axis=1)
        solution = np.linalg.lstsq(slopes, pixel + 0.5, rcond=None)[0]
        residual += float(((slopes @ solution - pixel - 0.5) ** 2).mean())
        solutions.append(solution)
    (fx, cx), (fy, cy) = solutions
    if min(fx, fy) <= 0 or residual**0.5 > _MAX_RESIDUAL_PIXELS:
        return None
    return np.array([fx, fy, cx, cy], np.float32)
