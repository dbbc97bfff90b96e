"""Grid on which a scene is queried, cell by cell, without an array of all of its points.

Imports no torch, since gateways count cells and compute their positions, too. The points are exactly those of
`models.systems.mcc.queries.cube_grid` and `half_ball_grid`. A cell has an index in a box of `shape`, x slowest and z fastest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle_schema import QuerySpace

MAX_CELLS = 2**31 - 1
"""Maximum number of cells: indices are stored as 32 bits."""


@dataclass(frozen=True)
class Lattice:
    space: QuerySpace
    spacing: float
    """Distance between neighbours, in normalised units. A cube's is rounded so that a whole number of cells fills it."""

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        if self.space.region == "cube":
            return (math.ceil(2 * self.space.extent / self.spacing),) * 3
        return 2 * self._steps + 1, 2 * self._steps + 1, self._steps + 1

    @cached_property
    def axes(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Coordinates of the cells along x, y and z."""
        if self.space.region == "cube":
            count = self.shape[0]
            axis = (np.arange(count, dtype=np.float32) - np.float32(count / 2)) / np.float32(count / 2 / self.space.extent)
            return axis, axis, axis
        index = np.arange(-self._steps, self._steps + 1).astype(np.float32) * np.float32(self.spacing)
        return index, index, index[self._steps :]

    @property
    def pitch(self) -> float:
        """The exact distance between neighbours."""
        return 2 * self.space.extent / self.shape[0] if self.space.region == "cube" else self.spacing

    @property
    def origin(self) -> tuple[float, float, float]:
        x, y, z = (float(axis[0]) for axis in self.axes)
        return x, y, z

    @property
    def index_count(self) -> int:
        """Number of indices; in a half ball some are not cells."""
        return math.prod(self.shape)

    @cached_property
    def count(self) -> int:
        """Number of cells, the queries of a dense grid. For a half ball of a fractional number of spacings, rounding of cells on the sphere
        may change it."""
        if self.space.region == "cube":
            return self.index_count
        x, z = np.arange(-self._steps, self._steps + 1), np.arange(self._steps + 1)
        squares = (self._steps**2 if self._is_whole else (self.space.extent / self.spacing) ** 2) - np.add.outer(x * x, z * z)
        return int((2 * np.sqrt(squares[squares >= 0]).astype(np.int64) + 1).sum())  # cells along y, for each x and z

    def contains(self, i: Any, j: Any, k: Any) -> Any:
        """Return for axis indices (i, j, k), which may lie outside, whether they are cells. Arrays or tensors of int."""
        inside = (i >= 0) & (i < self.shape[0]) & (j >= 0) & (j < self.shape[1]) & (k >= 0) & (k < self.shape[2])
        if self.space.region == "cube":
            return inside
        i, j = i - self._steps, j - self._steps
        if self._is_whole:
            return inside & (i * i + j * j + k * k <= self._steps**2)
        x, y, z = (_to_float32(axis) * self.spacing for axis in (i, j, k))
        return inside & ((x * x + y * y + z * z) ** 0.5 <= self.space.extent)

    def axis_indices(self, cells: Any) -> tuple[Any, Any, Any]:
        """Return the indices along the three axes of cells; arrays or tensors of int."""
        _, height, depth = self.shape
        return cells // (height * depth), cells // depth % height, cells % depth

    def points(self, cells: NDArray[Any]) -> NDArray[np.float32]:
        """Return the coordinates (P, 3) of cells (P,)."""
        return np.stack([axis[index] for axis, index in zip(self.axes, self.axis_indices(cells), strict=True)], axis=1)

    def coarse_stride(self) -> int:
        """Return the stride of the coarse lattice: the largest of 1, 2 and 4 that still samples each surface.

        A surface is twice `reach` thick, so every square of a few coarse cells on it contains a sample.
        """
        return next((stride for stride in (4, 2) if stride * self.pitch <= 2 * self.space.reach * (1 + 1e-6)), 1)

    @property
    def _steps(self) -> int:
        return int(self.space.extent / self.spacing)

    @property
    def _is_whole(self) -> bool:
        """Whether points on the sphere belong to the grid, regardless of rounding."""
        return (self.space.extent / self.spacing).is_integer()


def _to_float32(integers: Any) -> Any:
    return integers.astype(np.float32) if isinstance(integers, np.ndarray | np.generic) else integers.float()
