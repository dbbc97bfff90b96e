"""Coloured points from all sides, as one picture: simple squares of colour, the near ones over the far ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BACKGROUND = 255
ANGLES = (-60.0, -30.0, 0.0, 30.0, 60.0, 120.0, 180.0, 240.0)
"""Degrees: first what a camera near the one that took the photograph sees, then the sides that nobody saw."""
FILL = 0.9
"""Share of a view that the points take."""
SHADE = 0.45
"""How much darker the farthest points are."""
TILT = 20.0
"""Degrees from which the points are seen from above."""


@dataclass(frozen=True)
class Cloud:
    """Coloured points."""

    points: NDArray[np.float32]
    """(P, 3), x to the right, y down, z forward."""
    colours: NDArray[np.uint8]
    """(P, 3)."""
    sizes: NDArray[np.float32]
    """(P,): how wide each point is, in the same unit."""


def turntable(cloud: Cloud, *, angles: Sequence[float] = ANGLES, size: int = 256) -> NDArray[np.uint8]:
    """uint8 (size, views · size, 3). Each view is turned about the vertical from the camera's by an angle in degrees, and seen from a
    little above."""
    points = cloud.points
    centred = points - (points.max(axis=0) + points.min(axis=0)) / 2 if len(points) else points
    radius = float(np.linalg.norm(centred, axis=1).max(initial=1e-9))
    scale = size / 2 * FILL / radius
    sides = []
    for angle in angles:
        turned = centred @ _about_y(np.radians(angle)).T @ _about_x(np.radians(TILT)).T
        shade = 1 - SHADE * (1 + turned[:, 2:] / radius) / 2
        places = size / 2 + scale * turned[:, :2]
        farthest = turned[:, 2] + cloud.sizes
        sides.append(_drawn(places, farthest, (cloud.colours * shade).astype(np.uint8), scale * cloud.sizes, (size, size)))
    return np.concatenate(sides, axis=1)


def from_camera(cloud: Cloud, camera: Mapping[str, float], height: int, width: int) -> NDArray[np.uint8]:
    """uint8 (height, width, 3), as a camera of `fx`, `fy`, `cx` and `cy` in pixels sees the points."""
    ahead = cloud.points[:, 2] > 0
    points, colours, sizes = cloud.points[ahead], cloud.colours[ahead], cloud.sizes[ahead]
    depth = points[:, 2]
    places = np.stack([points[:, axis] / depth * camera[f"f{name}"] + camera[f"c{name}"] for axis, name in enumerate("xy")], axis=1)
    return _drawn(places, depth + sizes, colours, sizes / depth * camera["fx"], (height, width))


def _drawn(
    places: NDArray[Any], depth: NDArray[Any], colours: NDArray[np.uint8], widths: NDArray[Any], shape: tuple[int, int]
) -> NDArray[np.uint8]:
    """Squares of `widths` pixels (P,), a pixel at least, around places (P, 2) in columns and rows. What is nearer hides what is farther;
    depth (P,) is that of a point's far side, so that fine points hide a coarse one at the same place."""
    image = np.full((*shape, 3), BACKGROUND, np.uint8)
    nearest = np.full(shape, np.inf)
    sides = np.clip(np.ceil(widths - 0.05), 1, max(shape)).astype(int)
    first = np.ceil(places - sides[:, None] / 2 - 0.5).astype(int)  # of the pixels whose centres lie inside
    for side in np.unique(sides):
        chosen = np.flatnonzero(sides == side)
        chosen = chosen[np.argsort(-depth[chosen], kind="stable")]  # far ones first: the nearest stays
        for down in range(side):
            for right in range(side):
                row, column = first[chosen, 1] + down, first[chosen, 0] + right
                inside = (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])
                inside[inside] = depth[chosen[inside]] < nearest[row[inside], column[inside]]
                image[row[inside], column[inside]] = colours[chosen[inside]]
                nearest[row[inside], column[inside]] = depth[chosen[inside]]
    return image


def _about_x(angle: float) -> NDArray[np.float64]:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])


def _about_y(angle: float) -> NDArray[np.float64]:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
