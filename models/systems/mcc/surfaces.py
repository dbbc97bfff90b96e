"""The visible surface of a scene, depth and silhouette per pixel; and, from a network's predictions of the rest, one surface behind it,
which is slow: run it in a child process. Imports no torch: gateways use it, too.

Points are in normalised units; the camera is at `-centre` in them, with axes parallel to theirs. A point is inside if visible surface and
silhouette allow it and the network's cells enclose it. The network calls occupied all that is near a surface, a shell around it, so the
surface is placed inside the shell: one wall, which is closed where the shell is.

SciPy and scikit-image are imported when they are needed, so that a gateway starts without them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.arrays import Float32Array
from models.systems.mcc.lattice import Lattice

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


SHELL_RATIO = 0.7
"""Ratio of the threshold above which a cell belongs to the shell."""
INSET_RATIO = 0.75
"""Ratio of the reach by which the surface lies inside the shell. Both were tuned on validation objects of the starter's recipe."""
MAX_FIELD_CELLS = 2**24
"""Maximum number of cells of the field; the step of a larger one is a multiple of the spacing."""
_CELLS_PER_SLAB = 2**20
"""Number of cells whose distance from the visible surface is computed at once."""
_BORDER = 2


@dataclass(frozen=True)
class HiddenSurface:
    vertices: Float32Array
    """(V, 3), in normalised units."""
    faces: NDArray[np.int64]
    """(F, 3), counterclockwise from outside."""
    colours: NDArray[np.uint8]
    """(V, 3), of the nearest occupied cell."""
    joins_visible: NDArray[np.bool_]
    """(V,), whether a vertex is on the edge to the visible surface."""


EMPTY_SURFACE = HiddenSurface(np.empty((0, 3), np.float32), np.empty((0, 3), np.int64), np.empty((0, 3), np.uint8), np.empty(0, np.bool_))


def reconstruct_hidden_surface(
    lattice: Lattice,
    cells: NDArray[Any],
    occupancy: NDArray[np.float32],
    colours: NDArray[np.uint8],
    threshold: float,
    visible: VisibleSurface,
) -> HiddenSurface:
    """Reconstruct the surface behind the visible one.

    cells: (P,), indices on the lattice, with their probabilities (P,) and colours (P, 3), black if not above the threshold.
    """
    occupied = occupancy > threshold
    if not occupied.any() or not visible.seen.any():
        return EMPTY_SURFACE
    distances = _Distances(visible)
    volume = _Volume.from_cells(
        lattice, cells[occupancy > SHELL_RATIO * threshold], occupancy[occupancy > SHELL_RATIO * threshold], visible
    )
    inside, pitch = _signed_distance(volume, threshold, lattice.space.reach, distances), volume.pitch
    vertices, faces = _extract_mesh(inside)
    points = (volume.origin + vertices * np.float32(pitch)).astype(np.float32)
    joins_visible = np.abs(distances.behind_visible(points)) < lattice.space.reach + pitch / 4
    faces = faces[~joins_visible[faces].all(axis=1)]
    used, faces = np.unique(faces, return_inverse=True)
    points, joins_visible = points[used], joins_visible[used]
    projected = joins_visible | ~visible.is_consistent(points, lattice.pitch)
    points[projected] = distances.project_to_visible(points[projected])
    vertex_colours = _nearest_colours(points, lattice.points(cells[occupied]), colours[occupied])
    return HiddenSurface(points, faces.reshape(-1, 3).astype(np.int64), vertex_colours, joins_visible)


@dataclass(frozen=True)
class _Volume:
    occupancy: NDArray[np.float32]
    """(X, Y, Z)."""
    origin: NDArray[np.float32]
    """(3,), of the first cell."""
    pitch: float

    @staticmethod
    def from_cells(lattice: Lattice, cells: NDArray[Any], occupancy: NDArray[np.float32], visible: VisibleSurface) -> _Volume:
        """Return the volume that contains the cells and the visible surface."""
        axis_indices = np.stack(lattice.axis_indices(cells.astype(np.int64)), axis=1)
        origin = np.array(lattice.origin, np.float32)
        last = np.array(lattice.shape) - 1
        seen = np.clip(np.rint((visible.points - origin) / lattice.pitch), 0, last).astype(np.int64)
        low = np.minimum(axis_indices.min(axis=0), seen.min(axis=0))
        span = np.maximum(axis_indices.max(axis=0), seen.max(axis=0)) - low + 1
        step = 1
        while np.prod(span // step + 1 + 2 * _BORDER) > MAX_FIELD_CELLS:
            step += 1
        volume = np.zeros(span // step + 1 + 2 * _BORDER, np.float32)
        np.maximum.at(volume, tuple((((axis_indices - low) // step) + _BORDER).T), occupancy)
        first = low + (step - 1) / 2 - _BORDER * step
        return _Volume(volume, (origin + first * lattice.pitch).astype(np.float32), lattice.pitch * step)

    def points(self, first: int, last: int) -> Float32Array:
        """Return the points of some planes of cells, (P, 3)."""
        _, height, depth = self.occupancy.shape
        axes = (np.arange(first, last), np.arange(height), np.arange(depth))
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        return (self.origin + grid * np.float32(self.pitch)).astype(np.float32)


class _Distances:
    """Distances of points behind the visible surface, and inside the silhouette, in normalised units."""

    def __init__(self, visible: VisibleSurface) -> None:
        from scipy.ndimage import distance_transform_edt

        self._visible = visible
        near = distance_transform_edt(~visible.seen, return_distances=False, return_indices=True)
        self._depth = visible.depth[tuple(near)]  # unseen pixels have the depth of the nearest seen one
        self._nearest = distance_transform_edt(~visible.mask, return_distances=False, return_indices=True)
        framed = np.pad(visible.mask, 1, constant_values=False)
        inner = distance_transform_edt(framed)[1:-1, 1:-1]
        self._silhouette = np.where(visible.mask, inner - 0.5, 0.5 - distance_transform_edt(~visible.mask)).astype(np.float32)

    def behind_visible(self, points: Float32Array) -> NDArray[np.float32]:
        """Return the distances (P,) of points (P, 3) behind the visible surface, below 0 in front of it."""
        columns, rows, depth = self._visible.project(points)
        return np.asarray(depth - self._depth[self._pixel(columns, rows)], np.float32)

    def inside_silhouette(self, points: Float32Array) -> NDArray[np.float32]:
        """Return how far points (P, 3) lie inside the silhouette, (P,): below 0 outside or behind the camera; infinite outside the camera's
        view."""
        columns, rows, depth = self._visible.project(points)
        height, width = self._visible.mask.shape
        outside_image = np.hypot(columns - np.clip(columns, 0, width), rows - np.clip(rows, 0, height))
        pixels = np.minimum(self._silhouette[self._pixel(columns, rows)], np.where(outside_image > 0, -outside_image, np.inf))
        left, top, right, bottom = self._visible.frame
        framed = (columns >= left) & (columns < right) & (rows >= top) & (rows < bottom)
        distances = np.where(framed, pixels * depth / self._visible.camera[:2].mean(), np.inf)
        return np.where(depth > 0, distances, -np.inf).astype(np.float32)

    def project_to_visible(self, points: Float32Array) -> Float32Array:
        """Move points (P, 3) to the visible surface, in the nearest pixel of the silhouette."""
        columns, rows, _ = self._visible.project(points)
        height, width = self._visible.mask.shape
        column, row = np.clip(np.nan_to_num(columns), 0, width - 1e-3), np.clip(np.nan_to_num(rows), 0, height - 1e-3)
        pixel = self._pixel(column, row)
        nearest = tuple(index[pixel] for index in self._nearest)
        outside = ~self._visible.mask[pixel]
        column, row = np.where(outside, nearest[1] + 0.5, column), np.where(outside, nearest[0] + 0.5, row)
        return self._visible.unproject(column.astype(np.float64), row.astype(np.float64), self._depth[nearest])

    def _pixel(self, columns: NDArray[np.float32], rows: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return row and column of the nearest pixel."""
        height, width = self._visible.mask.shape
        row, column = (
            np.clip(np.nan_to_num(position), 0, side - 1).astype(np.intp) for position, side in ((rows, height), (columns, width))
        )
        return row, column


def _signed_distance(volume: _Volume, threshold: float, reach: float, distances: _Distances) -> NDArray[np.float32]:
    """Return the signed distance from the surface, clipped; above 0 inside: (X, Y, Z)."""
    from scipy.ndimage import distance_transform_edt

    shape, pitch = volume.occupancy.shape, volume.pitch
    max_distance = 2 * (pitch + reach)
    behind, within = np.empty(shape, np.float32), np.empty(shape, np.float32)
    planes = max(1, _CELLS_PER_SLAB // (shape[1] * shape[2]))
    for first in range(0, shape[0], planes):
        last = min(first + planes, shape[0])
        points = volume.points(first, last)
        behind[first:last] = distances.behind_visible(points).reshape(last - first, *shape[1:])
        within[first:last] = distances.inside_silhouette(points).reshape(last - first, *shape[1:])
    inside = np.clip(np.minimum(behind, within), -max_distance, max_distance)
    ruled_out = inside <= 0
    shell = (volume.occupancy > SHELL_RATIO * threshold) | ((behind > 0) & (behind <= 1.5 * pitch))
    empty = ~_fill_hollows(shell & ~ruled_out, ruled_out) & ~ruled_out
    if not empty.any():
        return np.asarray(inside, np.float32)
    walls = distance_transform_edt(~empty).astype(np.float32) * np.float32(pitch) - np.float32(pitch / 2 + INSET_RATIO * reach)
    return np.asarray(np.minimum(inside, walls), np.float32)


def _fill_hollows(shell: NDArray[np.bool_], ruled_out: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the shell and every hollow that leads neither to what is ruled out nor to the border."""
    from scipy.ndimage import label

    hollows, count = label(~shell)
    is_open = np.zeros(count + 1, np.bool_)
    is_open[hollows[ruled_out]] = True
    for axis in range(3):
        for plane in (0, -1):
            is_open[hollows.take(plane, axis)] = True
    is_open[0] = False
    return np.asarray(shell | ((hollows > 0) & ~is_open[hollows]))


def _extract_mesh(inside: NDArray[np.float32]) -> tuple[Float32Array, NDArray[np.int64]]:
    """Return vertices (V, 3) in cells, and faces (F, 3), where the field crosses 0."""
    from skimage.measure import marching_cubes

    closed = np.pad(inside, 1, constant_values=float(min(inside.min(), -1e-3)))
    if closed.max() <= 0:
        return EMPTY_SURFACE.vertices, EMPTY_SURFACE.faces
    vertices, faces, _, _ = marching_cubes(closed, 0.0, gradient_direction="ascent")  # type: ignore[no-untyped-call]
    return (vertices - 1).astype(np.float32), faces.astype(np.int64)


def _nearest_colours(points: Float32Array, cells: Float32Array, colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from scipy.spatial import cKDTree

    return colours[cKDTree(cells).query(points)[1]] if len(points) else EMPTY_SURFACE.colours
