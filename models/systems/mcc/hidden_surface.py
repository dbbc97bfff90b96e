"""Seen points and a network's answers for the rest → one surface behind the seen one. Heavy: run it in a child process. No torch here.

A place is inside where seen surface and silhouette allow it and the network's cells enclose it. The network calls occupied what is near a
surface, a shell around it, so the surface lies inside the shell: one wall, which is closed where the shell is.
SciPy and scikit-image are imported when they are needed: a gateway starts without them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.systems.mcc.lattice import Lattice
from models.systems.mcc.visible_surface import Front, Points

SHARE = 0.7
"""Share of the threshold from which a cell belongs to the shell."""
DEPTH = 0.75
"""Share of the reach by which the surface lies inside the shell. Both were chosen on validation objects of the starter's recipe."""
MOST_CELLS = 2**24
"""Cells of the field at most; the step of a larger one is a multiple of the spacing."""
_SLAB = 2**20
"""Cells whose distance from what was seen is computed at once."""
_BORDER = 2


@dataclass(frozen=True)
class Guess:
    """The part of the surface that nobody saw."""

    vertices: Points
    """(V, 3), in normalised units."""
    faces: NDArray[np.int64]
    """(F, 3), seen from outside counterclockwise."""
    colours: NDArray[np.uint8]
    """(V, 3), of the nearest occupied cell."""
    seen: NDArray[np.bool_]
    """(V,), where the guess meets what was seen."""


NOTHING = Guess(np.empty((0, 3), np.float32), np.empty((0, 3), np.int64), np.empty((0, 3), np.uint8), np.empty(0, np.bool_))


def guess(
    lattice: Lattice,
    cells: NDArray[Any],
    occupancy: NDArray[np.float32],
    colours: NDArray[np.uint8],
    threshold: float,
    front: Front,
) -> Guess:
    """cells (P,): indices on the lattice, with their probabilities (P,) and colours (P, 3), black where not above the threshold."""
    occupied = occupancy > threshold
    if not occupied.any() or not front.seen.any():
        return NOTHING
    distances = _Distances(front)
    volume = _Volume.of(lattice, cells[occupancy > SHARE * threshold], occupancy[occupancy > SHARE * threshold], front)
    inside, pitch = _inside(volume, threshold, lattice.space.reach, distances), volume.pitch
    vertices, faces = _march(inside)
    points = (volume.origin + vertices * np.float32(pitch)).astype(np.float32)
    on_front = np.abs(distances.behind(points)) < lattice.space.reach + pitch / 4
    faces = faces[~on_front[faces].all(axis=1)]
    used, faces = np.unique(faces, return_inverse=True)
    points, on_front = points[used], on_front[used]
    moved = on_front | ~front.allows(points, lattice.pitch)
    points[moved] = distances.on_surface(points[moved])
    found = _nearest(points, lattice.points(cells[occupied]), colours[occupied])
    return Guess(points, faces.reshape(-1, 3).astype(np.int64), found, on_front)


@dataclass(frozen=True)
class _Volume:
    occupancy: NDArray[np.float32]
    """(X, Y, Z)."""
    origin: NDArray[np.float32]
    """(3,), of the first cell."""
    pitch: float

    @staticmethod
    def of(lattice: Lattice, cells: NDArray[Any], occupancy: NDArray[np.float32], front: Front) -> _Volume:
        """Around the cells and what was seen."""
        places = np.stack(lattice.places(cells.astype(np.int64)), axis=1)
        origin = np.array(lattice.origin, np.float32)
        last = np.array(lattice.shape) - 1
        seen = np.clip(np.rint((front.points - origin) / lattice.pitch), 0, last).astype(np.int64)
        low = np.minimum(places.min(axis=0), seen.min(axis=0))
        span = np.maximum(places.max(axis=0), seen.max(axis=0)) - low + 1
        step = 1
        while np.prod(span // step + 1 + 2 * _BORDER) > MOST_CELLS:
            step += 1
        volume = np.zeros(span // step + 1 + 2 * _BORDER, np.float32)
        np.maximum.at(volume, tuple((((places - low) // step) + _BORDER).T), occupancy)
        first = low + (step - 1) / 2 - _BORDER * step
        return _Volume(volume, (origin + first * lattice.pitch).astype(np.float32), lattice.pitch * step)

    def points(self, first: int, last: int) -> Points:
        """Points of some planes of cells, (P, 3)."""
        _, height, depth = self.occupancy.shape
        axes = (np.arange(first, last), np.arange(height), np.arange(depth))
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        return (self.origin + grid * np.float32(self.pitch)).astype(np.float32)


class _Distances:
    """How far places lie behind what was seen, and inside the silhouette, in normalised units."""

    def __init__(self, front: Front) -> None:
        from scipy.ndimage import distance_transform_edt

        self._front = front
        near = distance_transform_edt(~front.seen, return_distances=False, return_indices=True)
        self._depth = front.depth[tuple(near)]  # of unseen pixels that of the nearest seen one
        self._nearest = distance_transform_edt(~front.mask, return_distances=False, return_indices=True)
        framed = np.pad(front.mask, 1, constant_values=False)
        inner = distance_transform_edt(framed)[1:-1, 1:-1]
        self._silhouette = np.where(front.mask, inner - 0.5, 0.5 - distance_transform_edt(~front.mask)).astype(np.float32)

    def behind(self, points: Points) -> NDArray[np.float32]:
        """(P, 3) → (P,), below 0 before what was seen."""
        columns, rows, depth = self._front.project(points)
        return np.asarray(depth - self._depth[self._pixel(columns, rows)], np.float32)

    def within(self, points: Points) -> NDArray[np.float32]:
        """(P, 3) → (P,), below 0 outside the silhouette or behind the camera; infinite where the camera did not look."""
        columns, rows, depth = self._front.project(points)
        height, width = self._front.mask.shape
        beside = np.hypot(columns - np.clip(columns, 0, width), rows - np.clip(rows, 0, height))
        pixels = np.minimum(self._silhouette[self._pixel(columns, rows)], np.where(beside > 0, -beside, np.inf))
        left, top, right, bottom = self._front.frame
        framed = (columns >= left) & (columns < right) & (rows >= top) & (rows < bottom)
        found = np.where(framed, pixels * depth / self._front.camera[:2].mean(), np.inf)
        return np.where(depth > 0, found, -np.inf).astype(np.float32)

    def on_surface(self, points: Points) -> Points:
        """(P, 3) → the same on the seen surface, in the nearest pixel of the silhouette."""
        columns, rows, _ = self._front.project(points)
        height, width = self._front.mask.shape
        column, row = np.clip(np.nan_to_num(columns), 0, width - 1e-3), np.clip(np.nan_to_num(rows), 0, height - 1e-3)
        pixel = self._pixel(column, row)
        nearest = tuple(index[pixel] for index in self._nearest)
        outside = ~self._front.mask[pixel]
        column, row = np.where(outside, nearest[1] + 0.5, column), np.where(outside, nearest[0] + 0.5, row)
        return self._front.unproject(column.astype(np.float64), row.astype(np.float64), self._depth[nearest])

    def _pixel(self, columns: NDArray[np.float32], rows: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Row and column of the nearest pixel."""
        height, width = self._front.mask.shape
        row, column = (np.clip(np.nan_to_num(place), 0, side - 1).astype(np.intp) for place, side in ((rows, height), (columns, width)))
        return row, column


def _inside(volume: _Volume, threshold: float, reach: float, distances: _Distances) -> NDArray[np.float32]:
    """Signed distance from the surface, cut off; above 0 inside."""
    from scipy.ndimage import distance_transform_edt

    shape, pitch = volume.occupancy.shape, volume.pitch
    most = 2 * (pitch + reach)
    behind, within = np.empty(shape, np.float32), np.empty(shape, np.float32)
    planes = max(1, _SLAB // (shape[1] * shape[2]))
    for first in range(0, shape[0], planes):
        last = min(first + planes, shape[0])
        points = volume.points(first, last)
        behind[first:last] = distances.behind(points).reshape(last - first, *shape[1:])
        within[first:last] = distances.within(points).reshape(last - first, *shape[1:])
    inside = np.clip(np.minimum(behind, within), -most, most)
    ruled_out = inside <= 0
    shell = (volume.occupancy > SHARE * threshold) | ((behind > 0) & (behind <= 1.5 * pitch))
    empty = ~_enclosed(shell & ~ruled_out, ruled_out) & ~ruled_out
    if not empty.any():
        return np.asarray(inside, np.float32)
    walls = distance_transform_edt(~empty).astype(np.float32) * np.float32(pitch) - np.float32(pitch / 2 + DEPTH * reach)
    return np.asarray(np.minimum(inside, walls), np.float32)


def _enclosed(shell: NDArray[np.bool_], ruled_out: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The shell and every hollow that leads neither to what is ruled out nor to the border."""
    from scipy.ndimage import label

    hollows, count = label(~shell)
    open_ones = np.zeros(count + 1, np.bool_)
    open_ones[hollows[ruled_out]] = True
    for axis in range(3):
        for plane in (0, -1):
            open_ones[hollows.take(plane, axis)] = True
    open_ones[0] = False
    return np.asarray(shell | ((hollows > 0) & ~open_ones[hollows]))


def _march(inside: NDArray[np.float32]) -> tuple[Points, NDArray[np.int64]]:
    """Vertices (V, 3) in cells, and faces (F, 3), where the field crosses 0."""
    from skimage.measure import marching_cubes

    closed = np.pad(inside, 1, constant_values=float(min(inside.min(), -1e-3)))
    if closed.max() <= 0:
        return NOTHING.vertices, NOTHING.faces
    vertices, faces, _, _ = marching_cubes(closed, 0.0, gradient_direction="ascent")  # type: ignore[no-untyped-call]
    return (vertices - 1).astype(np.float32), faces.astype(np.int64)


def _nearest(points: Points, cells: Points, colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from scipy.spatial import cKDTree

    return colours[cKDTree(cells).query(points)[1]] if len(points) else NOTHING.colours
