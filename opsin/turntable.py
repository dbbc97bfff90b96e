"""Coloured points from all sides, as one picture: simple squares of colour, the near ones over the far ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BACKGROUND = 255
FILL = 0.9
"""Share of a view that the points take."""
SHADE = 0.45
"""How much darker the farthest points are."""
TILT = 20.0
"""Degrees from which the points are seen from above."""


def turntable(points: NDArray[np.float32], colours: NDArray[np.uint8], *, views: int = 8, size: int = 256) -> NDArray[np.uint8]:
    """points (P, 3), x to the right, y down, z forward; colours (P, 3) → uint8 (size, views · size, 3).

    The first view is the camera's, from a little above; each further one is turned on."""
    centred = points - (points.max(axis=0) + points.min(axis=0)) / 2 if len(points) else points
    radius = float(np.linalg.norm(centred, axis=1).max(initial=1e-9))
    sides = [_view(centred / radius, colours, 2 * np.pi * turn / views, size) for turn in range(views)]
    return np.concatenate(sides, axis=1)


def _view(points: NDArray[np.float32], colours: NDArray[np.uint8], angle: float, size: int) -> NDArray[np.uint8]:
    """Points within a distance of 1."""
    image = np.full((size, size, 3), BACKGROUND, np.uint8)
    turned = points @ _about_y(angle).T @ _about_x(np.radians(TILT)).T
    near = (1 - turned[:, 2]) / 2
    shaded = (colours * (1 - SHADE * (1 - near[:, None]))).astype(np.uint8)
    x, y = (np.rint(size / 2 * (1 + FILL * turned[:, axis])).astype(int) for axis in (0, 1))
    steps = range(-_reach(len(points), size), _reach(len(points), size) + 1)
    rows = np.concatenate([y + down for down in steps for _ in steps])
    columns = np.concatenate([x + right for _ in steps for right in steps])
    order = np.argsort(np.tile(near, len(steps) ** 2), kind="stable")
    inside = order[((rows >= 0) & (rows < size) & (columns >= 0) & (columns < size))[order]]
    image[rows[inside], columns[inside]] = np.tile(shaded, (len(steps) ** 2, 1))[inside]  # far ones first: the nearest stays
    return image


def _reach(count: int, size: int) -> int:
    """Pixels around a point that it covers, so that surfaces look closed."""
    return min(6, math.ceil(0.8 * size / math.sqrt(max(count, 1))))


def _about_x(angle: float) -> NDArray[np.float64]:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])


def _about_y(angle: float) -> NDArray[np.float64]:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
