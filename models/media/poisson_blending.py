"""A filling's colours moved so that they meet the known ones at the edge of the hole, while its gradients stay: Poisson image editing
(Pérez, Gangnet and Blake, SIGGRAPH 2003).

What is added is a membrane: at the edge the difference of known and made colours, inside as smooth as it can be. It solves Laplace's
equation over the hole's box, from coarse to fine, on at most MOST_PIXELS; larger holes get an enlarged one, which is as smooth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_GRID_PIXELS = 2**18
"""Pixels of the grid that is solved, at most."""
SWEEPS, FINE_SWEEPS = 24, 10
"""Relaxations of a level: what is left changes slowly, and the coarser level has it. Fewer where they take long: of FEW cells and more."""
SMALL_GRID_CELLS = 2**14
MIN_SIDE_CELLS = 4
"""Cells along the shorter side below which no level is coarser."""
OVER_RELAXATION = 1.6
"""Over-relaxation."""
SOLVING_BYTES = 24 * 2**20
"""Bound for what solving takes besides images: about 80 bytes a pixel of the finest grid and a third more for the coarser ones."""

HALF = np.float32(0.5)
Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8] | Floats
NEIGHBOURS = ((1, 0), (-1, 0), (0, 1), (0, -1))
"""Steps down and right."""


@dataclass(frozen=True)
class Grid:
    """Cells of a hole, each of one or more pixels."""

    inside: Floats
    """(h, w), 1 for a cell that holds a pixel of the hole, else 0."""
    pull: Floats
    """(h, w), number of a cell's pixel edges to known pixels, for a cell of one pixel; of larger ones in relation to its side."""
    towards: Floats
    """(3, h, w), sum of known less made colours over these edges."""


@dataclass(frozen=True)
class Membrane:
    """Colours that are to be added to a filling."""

    values: Floats
    """(h, w, 3) of the grid."""
    scale: int
    """Pixels of the hole's box along the side of a cell."""

    def rows(self, top: int, bottom: int, width: int) -> Floats:
        """(bottom - top, width, 3) of the hole's box, linear between the centres of cells."""
        if self.scale == 1:
            return self.values[top:bottom, :width]
        above, below, down = self._between(np.arange(top, bottom), self.values.shape[0])
        left, right, across = self._between(np.arange(width), self.values.shape[1])
        lines = self.values[above] * (1 - down)[:, None, None] + self.values[below] * down[:, None, None]
        return np.asarray(lines[:, left] * (1 - across)[:, None] + lines[:, right] * across[:, None], np.float32)

    def _between(self, places: NDArray[np.intp], cells: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
        """Indices of the two cells around each pixel, and the share of the second one."""
        at = np.clip((places + 0.5) / self.scale - 0.5, 0, cells - 1)
        first = at.astype(np.intp)
        return first, np.minimum(first + 1, cells - 1), (at - first).astype(np.float32)


class BoundaryDifferences:
    """Collects the differences at the edge of a hole, some rows at a time. Shapes are those of the hole's box."""

    def __init__(self, height: int, width: int) -> None:
        self.scale = 1
        while -(-height // self.scale) * -(-width // self.scale) > MAX_GRID_PIXELS:
            self.scale += 1
        cells = -(-height // self.scale), -(-width // self.scale)
        self._inside = np.zeros(cells, np.bool_)
        self._pull = np.zeros(cells, np.float32)
        self._towards = np.zeros((3, *cells), np.float32)

    def add(self, top: int, known: Pixels, made: Pixels, hole: Mask, beyond: Mask) -> None:
        """Rows from `top`: made (h, w, 3); known (h + 2, w + 2, 3) and hole (h + 2, w + 2), with one pixel around them; beyond: those of
        these pixels that lie outside the image, and pull at nothing."""
        here, told = hole[1:-1, 1:-1], ~(hole | beyond)
        height, width = here.shape
        cells = np.logical_or.reduceat(here, np.arange(0, width, self.scale), axis=1)
        np.logical_or.at(self._inside, (np.arange(height) + top) // self.scale, cells)
        for down, right in NEIGHBOURS:
            beside = told[1 + down : 1 + down + height, 1 + right : 1 + right + width]
            rows, columns = np.nonzero(here & beside)
            difference = known[rows + 1 + down, columns + 1 + right] - made[rows, columns].astype(np.float32)  # (edges, 3)
            cell = (rows + top) // self.scale, columns // self.scale
            np.add.at(self._pull, cell, np.float32(1 / self.scale))
            for plane, values in zip(self._towards, difference.T, strict=True):
                np.add.at(plane, cell, values / self.scale)

    def membrane(self, limit: float | None = None) -> Membrane | None:
        """None for a hole without known neighbours. limit: grey levels by which a difference may deviate from the median of the edge. What
        deviates more is a line that the filling does not continue, and would colour all around it."""
        if not self._pull.any():
            return None
        if limit is not None:
            self._limit(limit)
        return Membrane(_solve(Grid(self._inside.astype(np.float32), self._pull, self._towards)), self.scale)

    def _limit(self, limit: float) -> None:
        at = self._pull > 0
        means = self._towards[:, at] / self._pull[at]  # (3, cells at the edge)
        usual = np.median(means, axis=1, keepdims=True)
        self._towards[:, at] = np.clip(means, usual - limit, usual + limit) * self._pull[at]


def blend_hole(image: Floats, missing: Mask) -> Floats:
    """An image whose hole is filled, (h, w, 3), with the colours in the hole moved. For images that need no strips."""
    edge = BoundaryDifferences(*missing.shape)
    edge.add(0, np.pad(image, ((1, 1), (1, 1), (0, 0))), image, np.pad(missing, 1), np.pad(np.zeros_like(missing), 1, constant_values=True))
    membrane = edge.membrane()
    if membrane is None:
        return image
    moved = np.clip(image + membrane.rows(0, missing.shape[0], missing.shape[1]), 0, 255)
    return np.where(missing[..., np.newaxis], moved, image).astype(np.float32)


def _solve(grid: Grid) -> Floats:
    """(h, w, 3); cells without a hole have what their neighbours have."""
    levels = list(_grid_pyramid(grid))
    values = np.zeros((3, *levels[-1].inside.shape), np.float32)
    values += (grid.towards.sum(axis=(1, 2)) / grid.pull.sum())[:, None, None]
    for level in reversed(levels):
        height, width = level.inside.shape
        finer = values if values.shape[1:] == level.inside.shape else values.repeat(2, axis=1).repeat(2, axis=2)
        values = _relax(level, finer[:, :height, :width], SWEEPS if height * width < SMALL_GRID_CELLS else FINE_SWEEPS)
    return np.ascontiguousarray(values.transpose(1, 2, 0))


def _grid_pyramid(grid: Grid) -> Iterator[Grid]:
    """The grid and, as long as they are not tiny, grids of half as many cells a side."""
    yield grid
    while min(grid.inside.shape) > MIN_SIDE_CELLS:
        grid = Grid(np.minimum(_pool(grid.inside), 1), _pool(grid.pull) * HALF, _pool(grid.towards) * HALF)
        yield grid


def _pool(cells: Floats) -> Floats:
    """Sums of two by two cells."""
    height, width = cells.shape[-2:]
    even = np.pad(cells, [(0, 0)] * (cells.ndim - 2) + [(0, height % 2), (0, width % 2)])
    pooled: Floats = even[..., ::2, ::2] + even[..., 1::2, ::2] + even[..., ::2, 1::2] + even[..., 1::2, 1::2]
    return pooled


def _relax(grid: Grid, values: Floats, sweeps: int) -> Floats:
    """Red and black cells in turns, over-relaxed: each becomes the mean of its neighbours in the hole and of what it is pulled to. A cell
    outside of the hole becomes the mean of all its neighbours, for whoever reads between cells."""
    hole = grid.inside > 0
    neighbours = _neighbour_sum(np.pad(grid.inside, 1))
    wide = np.pad(values * grid.inside, ((0, 0), (1, 1), (1, 1)))
    middle = wide[:, 1:-1, 1:-1]
    red = np.add.outer(np.arange(hole.shape[0]), np.arange(hole.shape[1])) % 2 == 0
    keep = [np.where(hole & turn, np.float32(OVER_RELAXATION), np.float32(0)) for turn in (red, ~red)]
    share = [one / np.maximum(neighbours + grid.pull, 1e-6) for one in keep]
    for _ in range(sweeps):
        for kept, shared in zip(keep, share, strict=True):
            change = _neighbour_sum(wide)
            change += grid.towards
            change *= shared
            change -= kept * middle
            middle += change
    spread = _neighbour_sum(wide) / np.maximum(neighbours, 1)
    return np.where(hole, middle, np.where(neighbours > 0, spread, values))


def _neighbour_sum(wide: Floats) -> Floats:
    """Sum of the four neighbours, of an array with a margin of one cell."""
    summed: Floats = wide[..., :-2, 1:-1] + wide[..., 2:, 1:-1]
    summed += wide[..., 1:-1, :-2]
    summed += wide[..., 1:-1, 2:]
    return summed
