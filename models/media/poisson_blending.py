"""Poisson image editing (Pérez, Gangnet and Blake, SIGGRAPH 2003): a filling's colours meet the known ones at the edge of the hole, and its
gradients stay.

A membrane is added: at the edge the difference of known and filled colours, and smooth inside. It solves Laplace's equation over the hole's
box, from coarse to fine, on at most MAX_GRID_PIXELS; for larger holes it is interpolated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.arrays import BoolArray, Float32Array

MAX_GRID_PIXELS = 2**18
SWEEPS, FINE_SWEEPS = 24, 10
"""Relaxations of a level, and of one with SMALL_GRID_CELLS or more: slowly changing errors are left to coarser levels."""
SMALL_GRID_CELLS = 2**14
MIN_SIDE_CELLS = 4
"""Length in cells of the shorter side below which no level is coarser."""
OVER_RELAXATION = 1.6
SOLVING_BYTES = 24 * 2**20
"""Maximum memory of solving without images: about 80 bytes per pixel of the finest grid and a third more for the coarser ones."""

HALF = np.float32(0.5)
Colours = NDArray[np.uint8] | Float32Array
NEIGHBOURS = ((1, 0), (-1, 0), (0, 1), (0, -1))
"""Steps down and right."""


@dataclass(frozen=True)
class Grid:
    """Cells of a hole, each of one or more pixels."""

    inside: Float32Array
    """(h, w), 1 for a cell with a pixel of the hole, else 0."""
    pull: Float32Array
    """(h, w), number of a cell's pixel edges to known pixels; for cells of several pixels divided by their side."""
    towards: Float32Array
    """(3, h, w), sum of known minus filled colours over these edges."""


@dataclass(frozen=True)
class Membrane:
    """Colours to be added to a filling."""

    values: Float32Array
    """(h, w, 3) of the grid."""
    scale: int
    """Colours of the hole's box along the side of a cell."""

    def rows(self, top: int, bottom: int, width: int) -> Float32Array:
        """Return rows of the hole's box, (bottom - top, width, 3), linear between the centres of cells."""
        if self.scale == 1:
            return self.values[top:bottom, :width]
        above, below, down = self._between(np.arange(top, bottom), self.values.shape[0])
        left, right, across = self._between(np.arange(width), self.values.shape[1])
        lines = self.values[above] * (1 - down)[:, None, None] + self.values[below] * down[:, None, None]
        return np.asarray(lines[:, left] * (1 - across)[:, None] + lines[:, right] * across[:, None], np.float32)

    def _between(self, pixels: NDArray[np.intp], cells: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Float32Array]:
        """Return the indices of the two cells around each pixel, and the weight of the second one."""
        at = np.clip((pixels + 0.5) / self.scale - 0.5, 0, cells - 1)
        first = at.astype(np.intp)
        return first, np.minimum(first + 1, cells - 1), (at - first).astype(np.float32)


class BoundaryDifferences:
    """Differences at the edge of a hole, added some rows at a time. Shapes are those of the hole's box."""

    def __init__(self, height: int, width: int) -> None:
        self.scale = 1
        while -(-height // self.scale) * -(-width // self.scale) > MAX_GRID_PIXELS:
            self.scale += 1
        cells = -(-height // self.scale), -(-width // self.scale)
        self._inside = np.zeros(cells, np.bool_)
        self._pull = np.zeros(cells, np.float32)
        self._towards = np.zeros((3, *cells), np.float32)

    def add(self, top: int, colours: Colours, filled: Colours, hole: BoolArray, outside: BoolArray) -> None:
        """Add rows from `top`: filled (h, w, 3); known (h + 2, w + 2, 3) and hole (h + 2, w + 2), with a margin of one pixel. outside:
        pixels of the margin that are outside the image and ignored."""
        inner, is_known = hole[1:-1, 1:-1], ~(hole | outside)
        height, width = inner.shape
        cells = np.logical_or.reduceat(inner, np.arange(0, width, self.scale), axis=1)
        np.logical_or.at(self._inside, (np.arange(height) + top) // self.scale, cells)
        for down, right in NEIGHBOURS:
            neighbour_known = is_known[1 + down : 1 + down + height, 1 + right : 1 + right + width]
            rows, columns = np.nonzero(inner & neighbour_known)
            difference = colours[rows + 1 + down, columns + 1 + right] - filled[rows, columns].astype(np.float32)  # (edges, 3)
            cell = (rows + top) // self.scale, columns // self.scale
            np.add.at(self._pull, cell, np.float32(1 / self.scale))
            for plane, values in zip(self._towards, difference.T, strict=True):
                np.add.at(plane, cell, values / self.scale)

    def membrane(self, limit: float | None = None) -> Membrane | None:
        """Solve for the membrane; None for a hole without known neighbours. limit: maximum deviation of a difference, in grey levels, from
        the median of the edge. Larger ones are lines that the filling does not continue, and would colour all around them."""
        if not self._pull.any():
            return None
        if limit is not None:
            self._limit(limit)
        return Membrane(_solve(Grid(self._inside.astype(np.float32), self._pull, self._towards)), self.scale)

    def _limit(self, limit: float) -> None:
        at = self._pull > 0
        means = self._towards[:, at] / self._pull[at]  # (3, cells at the edge)
        median = np.median(means, axis=1, keepdims=True)
        self._towards[:, at] = np.clip(means, median - limit, median + limit) * self._pull[at]


def blend_hole(image: Float32Array, missing: BoolArray) -> Float32Array:
    """Blend the filled hole of an image (h, w, 3) with its surroundings, all at once."""
    edge = BoundaryDifferences(*missing.shape)
    edge.add(0, np.pad(image, ((1, 1), (1, 1), (0, 0))), image, np.pad(missing, 1), np.pad(np.zeros_like(missing), 1, constant_values=True))
    membrane = edge.membrane()
    if membrane is None:
        return image
    moved = np.clip(image + membrane.rows(0, missing.shape[0], missing.shape[1]), 0, 255)
    return np.where(missing[..., np.newaxis], moved, image).astype(np.float32)


def _solve(grid: Grid) -> Float32Array:
    """Solve a grid → (h, w, 3); cells without a hole have the values of their neighbours."""
    levels = list(_grid_pyramid(grid))
    values = np.zeros((3, *levels[-1].inside.shape), np.float32)
    values += (grid.towards.sum(axis=(1, 2)) / grid.pull.sum())[:, None, None]
    for level in reversed(levels):
        height, width = level.inside.shape
        finer = values if values.shape[1:] == level.inside.shape else values.repeat(2, axis=1).repeat(2, axis=2)
        values = _relax(level, finer[:, :height, :width], SWEEPS if height * width < SMALL_GRID_CELLS else FINE_SWEEPS)
    return np.ascontiguousarray(values.transpose(1, 2, 0))


def _grid_pyramid(grid: Grid) -> Iterator[Grid]:
    """Yield the grid, then grids of half as many cells per side until they are tiny."""
    yield grid
    while min(grid.inside.shape) > MIN_SIDE_CELLS:
        grid = Grid(np.minimum(_pool(grid.inside), 1), _pool(grid.pull) * HALF, _pool(grid.towards) * HALF)
        yield grid


def _pool(cells: Float32Array) -> Float32Array:
    """Sum two by two cells."""
    height, width = cells.shape[-2:]
    even = np.pad(cells, [(0, 0)] * (cells.ndim - 2) + [(0, height % 2), (0, width % 2)])
    pooled: Float32Array = even[..., ::2, ::2] + even[..., 1::2, ::2] + even[..., ::2, 1::2] + even[..., 1::2, 1::2]
    return pooled


def _relax(grid: Grid, values: Float32Array, sweeps: int) -> Float32Array:
    """Relax red and black cells in turns, over-relaxed: each becomes the mean of its neighbours in the hole and of its boundary values. A
    cell outside of the hole becomes the mean of all its neighbours, for interpolation between cells."""
    hole = grid.inside > 0
    neighbours = _neighbour_sum(np.pad(grid.inside, 1))
    wide = np.pad(values * grid.inside, ((0, 0), (1, 1), (1, 1)))
    centre = wide[:, 1:-1, 1:-1]
    red = np.add.outer(np.arange(hole.shape[0]), np.arange(hole.shape[1])) % 2 == 0
    factors = [np.where(hole & colour, np.float32(OVER_RELAXATION), np.float32(0)) for colour in (red, ~red)]
    shares = [factor / np.maximum(neighbours + grid.pull, 1e-6) for factor in factors]
    for _ in range(sweeps):
        for factor, share in zip(factors, shares, strict=True):
            change = _neighbour_sum(wide)
            change += grid.towards
            change *= share
            change -= factor * centre
            centre += change
    spread = _neighbour_sum(wide) / np.maximum(neighbours, 1)
    return np.where(hole, centre, np.where(neighbours > 0, spread, values))


def _neighbour_sum(wide: Float32Array) -> Float32Array:
    """Sum the four neighbours, of an array with a margin of one cell."""
    summed: Float32Array = wide[..., :-2, 1:-1] + wide[..., 2:, 1:-1]
    summed += wide[..., 1:-1, :-2]
    summed += wide[..., 1:-1, 2:]
    return summed
