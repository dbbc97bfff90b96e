"""The grid on which a scene is asked, cell by cell, without an array of all of its points. Imports no torch: gateways count cells, and
place them in space, too.

The points are exactly those of `models.systems.mcc.queries.cube_grid` and `half_ball_grid`. A cell is known by its index in a box of
`shape`, x slowest and z fastest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle_schema import QuerySpace

MOST_CELLS = 2**31 - 1
"""Indices are 32 bits wide where they are stored."""


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
        """The true distance between neighbours."""
        return 2 * self.space.extent / self.shape[0] if self.space.region == "cube" else self.spacing

    @property
    def origin(self) -> tuple[float, float, float]:
        """Coordinates of the first cell."""
        x, y, z = (float(axis[0]) for axis in self.axes)
        return x, y, z

    @property
    def box(self) -> int:
        """Number of indices; in a half ball some stand for no cell."""
        return math.prod(self.shape)

    @cached_property
    def count(self) -> int:
        """Number of cells: queries of a dense grid. Of a half ball of no whole number of spacings it may be wrong by what rounding does to
        cells on the sphere."""
        if self.space.region == "cube":
            return self.box
        x, z = np.arange(-self._steps, self._steps + 1), np.arange(self._steps + 1)
        left = (self._steps**2 if self._is_whole else (self.space.extent / self.spacing) ** 2) - np.add.outer(x * x, z * z)
        return int((2 * np.sqrt(left[left >= 0]).astype(np.int64) + 1).sum())  # cells along y, for each x and z

    def contains(self, i: Any, j: Any, k: Any) -> Any:
        """Whether these places on the three axes (arrays or tensors of integers, which may lie outside) are cells."""
        inside = (i >= 0) & (i < self.shape[0]) & (j >= 0) & (j < self.shape[1]) & (k >= 0) & (k < self.shape[2])
        if self.space.region == "cube":
            return inside
        i, j = i - self._steps, j - self._steps
        if self._is_whole:
            return inside & (i * i + j * j + k * k <= self._steps**2)
        x, y, z = (_in_float32(axis) * self.spacing for axis in (i, j, k))
        return inside & ((x * x + y * y + z * z) ** 0.5 <= self.space.extent)

    def places(self, cells: Any) -> tuple[Any, Any, Any]:
        """Indices → places on the three axes; arrays or tensors of integers."""
        _, height, depth = self.shape
        return cells // (height * depth), cells // depth % height, cells % depth

    def points(self, cells: NDArray[Any]) -> NDArray[np.float32]:
        """Indices (P,) → coordinates (P, 3)."""
        return np.stack([axis[place] for axis, place in zip(self.axes, self.places(cells), strict=True)], axis=1)

    def stride(self) -> int:
        """Stride of the coarse lattice: the largest of 1, 2 and 4 at which each surface, twice `reach` thick, is met in every square of a
        few coarse cells."""
        return next((stride for stride in (4, 2) if stride * self.pitch <= 2 * self.space.reach * (1 + 1e-6)), 1)

    @property
    def _steps(self) -> int:
        return int(self.space.extent / self.spacing)

    @property
    def _is_whole(self) -> bool:
        """Points on the sphere belong to the grid then, whatever rounding says."""
        return (self.space.extent / self.spacing).is_integer()


def _in_float32(integers: Any) -> Any:
    return integers.astype(np.float32) if isinstance(integers, np.ndarray | np.generic) else integers.float()
