"""Signed distance functions of solids, rendered to an image and depth by sphere tracing.

Lengths are in metres, y is up. P is the number of points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.arrays import Float32Array

Point = Sequence[float] | NDArray[Any]
Distance = Callable[[Float32Array], Float32Array]
"""Signed distance of points to a solid, negative inside: (P, 3) → (P,)."""

STEPS, NEAR_ENOUGH, CAUTION = 80, 0.0005, 0.9
"""Maximum number of steps of a ray, the distance at which it has arrived, and the share of the distance that a step covers."""
SLOPE = 0.001
"""Step of the finite differences of normals, in metres."""
LIGHT = np.array([0.39, 0.78, 0.49], np.float32)


@dataclass(frozen=True)
class Solid:
    colour: tuple[int, int, int]
    distance: Distance
    stripes: tuple[tuple[int, int, int], float] | None = None
    """Second colour, and height of a stripe in metres."""

    def colours(self, points: Float32Array) -> Float32Array:
        """Return colours of points: (P, 3) → (P, 3), 0 to 255."""
        plain = np.tile(np.array(self.colour, np.float32), (len(points), 1))
        if self.stripes is not None:
            other, height = self.stripes
            plain[np.floor(points[:, 1] / height) % 2 == 1] = other
        return plain


@dataclass(frozen=True)
class DrawingCamera:
    """Camera of a drawing. `fov` is horizontal, in degrees."""

    eye: tuple[float, float, float]
    target: tuple[float, float, float]
    fov: float
    width: int
    height: int

    def rays(self) -> tuple[Float32Array, Float32Array]:
        """Return unit directions (height · width, 3) in raster order, and the cosine of each with the optical axis."""
        forward = _unit(np.subtract(self.target, self.eye))
        right = _unit(np.cross(forward, (0, 1, 0)))
        focal = self.width / 2 / np.tan(np.radians(self.fov) / 2)
        across = (np.arange(self.width) + 0.5 - self.width / 2) / focal
        up = -(np.arange(self.height) + 0.5 - self.height / 2) / focal
        rays = forward + across[None, :, None] * right + up[:, None, None] * np.cross(right, forward)
        rays = _unit(rays.reshape(-1, 3)).astype(np.float32)
        return rays, (rays @ forward).astype(np.float32)


@dataclass(frozen=True)
class RenderedSolids:
    colours: NDArray[np.uint8]
    """(H, W, 3), black background."""
    depth: Float32Array
    """(H, W), along the optical axis; 0 in the background."""


def render(solids: Sequence[Solid], camera: DrawingCamera, reach: float = 10.0) -> RenderedSolids:
    """Draw what lies within `reach` of the camera."""
    rays, axis = camera.rays()
    eye = np.array(camera.eye, np.float32)
    travelled = np.zeros(len(rays), np.float32)
    arrived = np.zeros(len(rays), bool)
    going = np.arange(len(rays))
    for _ in range(STEPS):
        left = _nearest(solids, eye + travelled[going, None] * rays[going])
        arrived[going[left < NEAR_ENOUGH]] = True
        travelled[going] += CAUTION * left
        going = going[(left >= NEAR_ENOUGH) & (travelled[going] < reach)]
    points = eye + travelled[arrived, None] * rays[arrived]
    colours, depth = np.zeros((len(rays), 3), np.uint8), np.zeros(len(rays), np.float32)
    colours[arrived] = _shade(solids, points)
    depth[arrived] = (travelled * axis)[arrived]
    shape = (camera.height, camera.width)
    return RenderedSolids(colours.reshape(*shape, 3), depth.reshape(shape))


def capsule(start: Point, end: Point, radius: float, end_radius: float | None = None) -> Distance:
    """Return the distance to a capsule, tapered if `end_radius` is given."""
    a, along = np.asarray(start, np.float32), np.subtract(end, start).astype(np.float32)
    thinner = radius if end_radius is None else end_radius

    def distance(points: Float32Array) -> Float32Array:
        share = np.clip((points - a) @ along / (along @ along), 0, 1)
        far: Float32Array = np.linalg.norm(points - a - share[:, None] * along, axis=1) - (radius + (thinner - radius) * share)
        return far

    return distance


def ellipsoid(centre: Point, radii: Point) -> Distance:
    """Return a lower bound of the distance to an ellipsoid, exact near its surface."""
    middle, sizes = np.asarray(centre, np.float32), np.asarray(radii, np.float32)

    def distance(points: Float32Array) -> Float32Array:
        far: Float32Array = (np.linalg.norm((points - middle) / sizes, axis=1) - 1) * sizes.min()
        return far

    return distance


def cylinder(centre: Point, radius: float, half_height: float) -> Distance:
    """Return the distance to an upright cylinder."""
    middle = np.asarray(centre, np.float32)

    def distance(points: Float32Array) -> Float32Array:
        away = points - middle
        outside = np.stack([np.hypot(away[:, 0], away[:, 2]) - radius, np.abs(away[:, 1]) - half_height])
        far: Float32Array = np.minimum(outside.max(axis=0), 0) + np.linalg.norm(np.maximum(outside, 0), axis=0)
        return far

    return distance


def ring(centre: Point, radius: float, thickness: float) -> Distance:
    """Return the distance to an upright torus whose axis is z."""
    middle = np.asarray(centre, np.float32)

    def distance(points: Float32Array) -> Float32Array:
        away = points - middle
        far: Float32Array = np.hypot(np.hypot(away[:, 0], away[:, 1]) - radius, away[:, 2]) - thickness
        return far

    return distance


def without(solid: Distance, hole: Distance) -> Distance:
    return lambda points: np.maximum(solid(points), -hole(points))


def _nearest(solids: Sequence[Solid], points: Float32Array) -> Float32Array:
    nearest: Float32Array = np.min([solid.distance(points) for solid in solids], axis=0)
    return nearest


def _shade(solids: Sequence[Solid], points: Float32Array) -> NDArray[np.uint8]:
    owners = np.argmin([solid.distance(points) for solid in solids], axis=0)
    colours = np.stack([solid.colours(points) for solid in solids])[owners, np.arange(len(points))]
    offsets = np.eye(3, dtype=np.float32) * SLOPE
    normals = _unit(np.stack([_nearest(solids, points + step) - _nearest(solids, points - step) for step in offsets], axis=1))
    bright = 0.45 + 0.5 * np.clip(normals @ LIGHT, 0, 1) + 0.1 * np.clip(normals[:, 1], 0, 1)
    shaded: NDArray[np.uint8] = np.clip(colours * bright[:, None], 0, 255).astype(np.uint8)
    return shaded


def _unit(vectors: NDArray[Any]) -> NDArray[Any]:
    lengths: NDArray[Any] = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)
    return lengths
