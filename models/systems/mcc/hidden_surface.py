"""Seen points and a network's predictions of the rest → one surface behind the visible one. Slow: run it in a child process. Imports no
torch.

A point is inside if visible surface and silhouette allow it and the network's cells enclose it. The network calls occupied all that is near
a surface, a shell around it, so the surface is placed inside the shell: one wall, which is closed where the shell is.

SciPy and scikit-image are imported when they are needed, so that a gateway starts without them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.arrays import Float32Array
from models.systems.mcc.lattice import Lattice
from models.systems.mcc.visible_surface import VisibleSurface

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
    """Surface that no camera saw."""

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
