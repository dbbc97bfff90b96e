"""Occupied cells of a lattice → a coloured surface between them and their empty neighbours. Heavy: run it in a child process.

scikit-image is imported when it is needed: a gateway starts without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SLAB_CELLS = 16_000_000
"""Cells of a volume that are in memory at once: a quarter of a gigabyte while its surface is made."""
BORDER = 1
"""Empty cells around what is occupied, so that surfaces close."""


@dataclass(frozen=True)
class Surface:
    """A mesh of triangles."""

    vertices: NDArray[np.float32]
    """(V, 3), in cells of the lattice."""
    faces: NDArray[np.int64]
    """(F, 3), seen from outside counterclockwise."""
    colours: NDArray[np.uint8]
    """(V, 3)."""


@dataclass(frozen=True)
class Cells:
    places: NDArray[np.int64]
    """(P, 3), sorted by the first column."""
    values: NDArray[np.float32]
    """(P,) probabilities; cells that are not here have 0."""
    colours: NDArray[np.uint8]
    """(P, 3)."""


def surface(cells: Cells, level: float, slab_cells: int = SLAB_CELLS) -> Surface:
    """Marching cubes where the values cross `level`; a vertex has the colour of the occupied one of the two cells that it lies between.

    Large volumes are taken in slabs, which share a plane of cells: along it vertices are doubled, at the same places.
    """
    if not (cells.values > level).any():
        return Surface(np.empty((0, 3), np.float32), np.empty((0, 3), np.int64), np.empty((0, 3), np.uint8))
    parts = list(_slabs(cells, level, slab_cells))
    offsets = np.cumsum([0, *(len(part.vertices) for part in parts)])
    return Surface(
        np.concatenate([part.vertices for part in parts]),
        np.concatenate([part.faces + offset for part, offset in zip(parts, offsets, strict=False)]),
        np.concatenate([part.colours for part in parts]),
    )


def _slabs(cells: Cells, level: float, slab_cells: int) -> Iterator[Surface]:
    low, high = cells.places.min(axis=0) - BORDER, cells.places.max(axis=0) + BORDER
    thickness = max(2, slab_cells // int(np.prod(high[1:] - low[1:] + 1)))
    for first in range(int(low[0]), int(high[0]), thickness - 1):
        last = min(first + thickness - 1, int(high[0]))
        start, stop = np.searchsorted(cells.places[:, 0], (first, last + 1))
        slab = slice(int(start), int(stop))
        corner = np.array([first, low[1], low[2]])
        shape = (last - first + 1, *(int(length) for length in high[1:] - low[1:] + 1))
        part = _march(Cells(cells.places[slab] - corner, cells.values[slab], cells.colours[slab]), shape, level)
        if part is not None:
            yield Surface((part.vertices + corner).astype(np.float32), part.faces, part.colours)


def _march(cells: Cells, shape: tuple[int, ...], level: float) -> Surface | None:
    """Of one volume; None where nothing crosses the level."""
    from skimage.measure import marching_cubes

    volume = np.zeros(shape, np.float32)
    volume[tuple(cells.places.T)] = cells.values
    if not volume.min() <= level < volume.max():
        return None
    colours = np.zeros((*shape, 3), np.uint8)
    colours[tuple(cells.places.T)] = cells.colours
    vertices, faces, _, _ = marching_cubes(volume, level, gradient_direction="ascent")  # type: ignore[no-untyped-call]
    below, above = (tuple(edge(vertices).astype(np.intp).T) for edge in (np.floor, np.ceil))
    occupied = (volume[above] > volume[below])[:, None]
    return Surface(vertices, faces.astype(np.int64), np.where(occupied, colours[above], colours[below]))
