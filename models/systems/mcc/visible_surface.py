"""Front of a scene as a camera saw it: depth and silhouette, pixel by pixel, and what they rule out. Imports no torch: gateways carve, too.

Points are in normalised units; the camera stands at `-centre` among them, with axes parallel to theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]
"""(..., 3)."""

_DIAGONAL = 0.7
_AROUND = np.array(
    [(0, 0, 0), (0, 0, 1)]
    + [(x, y, 0) for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1))]
    + [(x * _DIAGONAL, y * _DIAGONAL, 0) for x in (1, -1) for y in (1, -1)],
    np.float32,
)
"""Where a place may be instead, in units of the tolerance: the same, farther away, or aside."""
_MOST_RESIDUAL = 1.0
"""Pixels (root of the mean square) by which points may miss the camera that fits them."""
_STEEP = 6.0
"""Depth between neighbouring pixels, in widths of a pixel, up to which they lie on one surface."""


@dataclass(frozen=True)
class FrontMesh:
    vertices: Points
    """(V, 3), corners of pixels; where the surface jumps there are several at one corner."""
    places: Points
    """(V, 2), column and row of the corner: 0 to the width and the height."""
    pixels: NDArray[np.int64]
    """(V,), a pixel of each vertex, in the order of `Front.points`."""
    faces: NDArray[np.int64]
    """(F, 3), counterclockwise for the camera."""


@dataclass(frozen=True)
class Front:
    depth: NDArray[np.float32]
    """(h, w), along the optical axis; NaN where nothing of the object was seen."""
    mask: NDArray[np.bool_]
    """(h, w), the silhouette: the object is seen nowhere else."""
    camera: NDArray[np.float32]
    """(4,): fx, fy, cx, cy in pixels; the centre of the first pixel is at (0.5, 0.5)."""
    frame: NDArray[np.float32]
    """(4,): left, top, right and bottom edge of what the camera saw, in the same pixels; beyond it nothing is ruled out."""
    centre: NDArray[np.float32]
    """(3,)."""

    @cached_property
    def seen(self) -> NDArray[np.bool_]:
        """(h, w)."""
        return np.isfinite(self.depth) & self.mask

    @cached_property
    def points(self) -> Points:
        """(P, 3), of the pixels that are seen, in raster order."""
        rows, columns = np.nonzero(self.seen)
        return self.unproject(columns + 0.5, rows + 0.5, self.depth[self.seen])

    @cached_property
    def widths(self) -> NDArray[np.float32]:
        """(P,): how wide a pixel is where `points` are."""
        widths: NDArray[np.float32] = (self.depth[self.seen] / self.camera[:2].mean()).astype(np.float32)
        return widths

    def unproject(self, columns: NDArray[Any], rows: NDArray[Any], depth: NDArray[np.float32]) -> Points:
        fx, fy, cx, cy = self.camera.astype(np.float64)
        points = np.stack([(columns - cx) / fx * depth, (rows - cy) / fy * depth, depth], axis=1)
        moved: Points = (points - self.centre).astype(np.float32)
        return moved

    def project(self, points: Points) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """(P, 3) → column, row and depth, (P,) each. Places that are not before the camera have no finite column."""
        fx, fy, cx, cy = self.camera
        x, y, depth = (points + self.centre).T
        ahead = np.where(depth > 0, depth, np.nan)
        return fx * x / ahead + cx, fy * y / ahead + cy, depth

    def allows(self, points: Points, tolerance: float) -> NDArray[np.bool_]:
        """(P, 3) → (P,): whether there is a place within the tolerance that silhouette and seen surface leave to the object."""
        allowed = np.zeros(len(points), np.bool_)
        for offset in _AROUND * np.float32(tolerance):
            allowed[~allowed] = self._may_be(points[~allowed] + offset)
        return allowed

    def _may_be(self, points: Points) -> NDArray[np.bool_]:
        columns, rows, depth = self.project(points)
        left, top, right, bottom = self.frame
        framed = (columns >= left) & (columns < right) & (rows >= top) & (rows < bottom)
        height, width = self.mask.shape
        here = framed & (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        column, row = (np.where(here, place, 0).astype(np.intp) for place in (columns, rows))
        behind = ~(depth < np.where(self.seen[row, column], self.depth[row, column], -np.inf))
        return np.asarray(np.isfinite(columns) & (~framed | (here & self.mask[row, column] & behind)))

    def mesh(self, jump: float) -> FrontMesh:
        """A square for each pixel that was seen, joined to its neighbours where the depth does not jump by more than `jump`, or, where the
        surface is steep, by some widths of a pixel."""
        rows, columns = np.nonzero(self.seen)
        padded = np.pad(np.where(self.seen, self.depth, np.nan), 1, constant_values=np.nan)
        own = padded[rows + 1, columns + 1]
        most = np.maximum(jump, _STEEP * self.widths)
        corners, depths = [], []
        for down, right in ((0, 0), (1, 0), (1, 1), (0, 1)):  # counterclockwise
            around = np.stack([padded[rows + down + i, columns + right + j] for i in (0, 1) for j in (0, 1)])
            near = np.abs(around - own) <= most  # of the pixel itself at least
            depths.append(np.where(near, around, 0).sum(axis=0) / near.sum(axis=0))
            corners.append((rows + down) * (self.depth.shape[1] + 1) + columns + right)
        corner, depth = np.stack(corners, axis=1).ravel(), np.stack(depths, axis=1).ravel().astype(np.float32)
        key = np.stack([corner, depth.view(np.int32).astype(np.int64)], axis=1)
        _, first, index = np.unique(key, axis=0, return_index=True, return_inverse=True)
        square = index.reshape(-1, 4)
        places = np.stack([corner[first] % (self.depth.shape[1] + 1), corner[first] // (self.depth.shape[1] + 1)], axis=1)
        faces = np.concatenate([square[:, [0, 1, 2]], square[:, [0, 2, 3]]]).astype(np.int64)
        vertices = self.unproject(places[:, 0].astype(np.float64), places[:, 1].astype(np.float64), depth[first])
        return FrontMesh(vertices, places.astype(np.float32), first // 4, faces)


def fitted_camera(points: Points, seen: NDArray[np.bool_]) -> NDArray[np.float32] | None:
    """fx, fy, cx, cy of the pinhole camera that sees each point (H, W, 3) in its pixel, by least squares; None: there is none."""
    rows, columns = np.nonzero(seen)
    found = points[seen].astype(np.float64)
    if len(found) < 3 or (found[:, 2] <= 0).any():
        return None
    fitted, residual = [], 0.0
    for axis, pixel in ((0, columns), (1, rows)):
        slopes = np.stack([found[:, axis] / found[:, 2], np.ones(len(found))], axis=1)
        solution = np.linalg.lstsq(slopes, pixel + 0.5, rcond=None)[0]
        residual += float(((slopes @ solution - pixel - 0.5) ** 2).mean())
        fitted.append(solution)
    (fx, cx), (fy, cy) = fitted
    if min(fx, fy) <= 0 or residual**0.5 > _MOST_RESIDUAL:
        return None
    return np.array([fx, fy, cx, cy], np.float32)
