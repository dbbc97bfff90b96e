"""Rendering of coloured points, from a camera or from all sides: each point is a square, and near squares hide far ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BACKGROUND = 255
TURNTABLE_DEGREES = (-60.0, -30.0, 0.0, 30.0, 60.0, 120.0, 180.0, 240.0)
"""Angles of the views: first those of cameras near the one that took the photograph, then the hidden sides."""
FILLED_SHARE = 0.9
"""Share of a view's width that the points fill."""
SHADE = 0.45
"""Share by which the farthest points are darkened."""
TILT_DEGREES = 20.0
"""Elevation of the camera above the points."""


@dataclass(frozen=True)
class ColouredPointCloud:
    """Coloured points with their widths."""

    points: NDArray[np.float32]
    """(P, 3): x to the right, y down, z forward."""
    colours: NDArray[np.uint8]
    """(P, 3): sRGB."""
    sizes: NDArray[np.float32]
    """(P,): width of each point, in the unit of `points`."""


def render_turntable(cloud: ColouredPointCloud, *, angles: Sequence[float] = TURNTABLE_DEGREES, size: int = 256) -> NDArray[np.uint8]:
    """Render views from several sides next to each other: uint8 (size, views · size, 3).

    Each view is rotated about the vertical axis by an angle in degrees, and seen from slightly above.
    """
    points = cloud.points
    centred = points - (points.max(axis=0) + points.min(axis=0)) / 2 if len(points) else points
    radius = float(np.linalg.norm(centred, axis=1).max(initial=1e-9))
    scale = size / 2 * FILLED_SHARE / radius
    views = []
    for angle in angles:
        turned = centred @ _about_y(np.radians(angle)).T @ _about_x(np.radians(TILT_DEGREES)).T
        shade = 1 - SHADE * (1 + turned[:, 2:] / radius) / 2
        pixels = size / 2 + scale * turned[:, :2]
        far_depth = turned[:, 2] + cloud.sizes
        views.append(_draw(pixels, far_depth, (cloud.colours * shade).astype(np.uint8), scale * cloud.sizes, (size, size)))
    return np.concatenate(views, axis=1)


def render_from_camera(cloud: ColouredPointCloud, camera: Mapping[str, float], height: int, width: int) -> NDArray[np.uint8]:
    """Render the points from a camera with `fx`, `fy`, `cx` and `cy` in pixels: uint8 (height, width, 3)."""
    ahead = cloud.points[:, 2] > 0
    points, colours, sizes = cloud.points[ahead], cloud.colours[ahead], cloud.sizes[ahead]
    depth = points[:, 2]
    pixels = np.stack([points[:, axis] / depth * camera[f"f{name}"] + camera[f"c{name}"] for axis, name in enumerate("xy")], axis=1)
    return _draw(pixels, depth + sizes, colours, sizes / depth * camera["fx"], (height, width))


def _draw(
    pixels: NDArray[Any], depth: NDArray[Any], colours: NDArray[np.uint8], widths: NDArray[Any], shape: tuple[int, int]
) -> NDArray[np.uint8]:
    """Draw squares of `widths` (P,) in pixels, at least one pixel wide, around `pixels` (P, 2) in columns and rows.

    Near squares hide far ones. depth (P,) is that of a point's far side, so that fine points hide a coarse one at the same position.
    """
    image = np.full((*shape, 3), BACKGROUND, np.uint8)
    nearest = np.full(shape, np.inf)
    sizes = np.clip(np.ceil(widths - 0.05), 1, max(shape)).astype(int)
    first = np.ceil(pixels - sizes[:, None] / 2 - 0.5).astype(int)  # the first pixel whose centre is inside
    for size in np.unique(sizes):
        chosen = np.flatnonzero(sizes == size)
        chosen = chosen[np.argsort(-depth[chosen], kind="stable")]  # far points first: the nearest is drawn last
        for down in range(size):
            for right in range(size):
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
